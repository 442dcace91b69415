//! Tokens: which are taken, and what it costs to find out.

use crate::rig::{Cluster, SigningKey, TestClock, cart};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use identity::{AuthError, Pod, Proof, Rejection, Review};
use serde_json::{Value, json};
use std::time::Duration;

fn rejected(rejection: Rejection) -> AuthError {
    AuthError::Rejected(rejection)
}

#[tokio::test]
async fn a_good_token_is_verified_without_the_api_server() {
    let cluster = Cluster::new(TestClock::new());
    for _ in 0..100 {
        let caller = cluster.authenticate(&cluster.token(|_| ())).await.unwrap().unwrap();
        assert_eq!(caller.id, cart());
        assert_eq!(caller.proof, Proof::Token);
        assert_eq!(caller.pod, Some(Pod { name: "cart-1".into(), uid: "pod-uid".into() }));
        assert_eq!(caller.node.as_deref(), Some("node-1"));
        assert_eq!(caller.expires, cluster.clock.now() + Duration::from_secs(3600));
    }
    assert_eq!(cluster.reviewer.reviews(), 0);
    assert_eq!(cluster.keys.fetches(), 1);
    assert_eq!(cluster.metrics.tokens_offline.get(), 100);
}

#[tokio::test]
async fn clusters_with_rsa_keys_are_served_too() {
    let cluster = Cluster::new(TestClock::new());
    let key = SigningKey::rsa("rsa");
    cluster.keys.publish(&[&key]);
    let caller = cluster.authenticate(&key.sign(&cluster.claims())).await.unwrap().unwrap();
    assert_eq!(caller.id, cart());
}

type Change = fn(&mut Value);

#[tokio::test]
async fn bad_claims_are_rejected_here_and_now() {
    let cluster = Cluster::new(TestClock::new());
    *cluster.reviewer.answer.lock() = Some(cluster.good_review());
    let cases: &[(&str, Change, Rejection)] = &[
        ("expired", |c| c["exp"] = json!(1_799_999_980), Rejection::Expired),
        ("too early", |c| c["nbf"] = json!(1_800_000_020), Rejection::NotYetValid),
        ("for the API server", |c| c["aud"] = json!([crate::rig::ISSUER]), Rejection::Audience),
        ("for others", |c| c["aud"] = json!("vault"), Rejection::Audience),
        ("for nobody", |c| c["aud"] = json!([]), Rejection::Audience),
        ("legacy: without audience", |c| drop(c.as_object_mut().unwrap().remove("aud")), Rejection::Subject),
        ("legacy: without end", |c| drop(c.as_object_mut().unwrap().remove("exp")), Rejection::Subject),
        ("of a user", |c| c["sub"] = json!("admin"), Rejection::Subject),
        ("of a node", |c| c["sub"] = json!("system:node:a"), Rejection::Subject),
        ("with five parts", |c| c["sub"] = json!("system:serviceaccount:shop:cart:x"), Rejection::Subject),
        ("contradicting", |c| c["sub"] = json!("system:serviceaccount:bank:cart"), Rejection::Subject),
        (
            "contradicting itself the other way",
            |c| c["kubernetes.io"]["serviceaccount"]["name"] = json!("admin"),
            Rejection::Subject,
        ),
        (
            "with a name that no SPIFFE id can have",
            |c| {
                c["sub"] = json!("system:serviceaccount:shop:a/sa/b");
                c["kubernetes.io"]["serviceaccount"]["name"] = json!("a/sa/b");
            },
            Rejection::Subject,
        ),
        ("that ends never", |c| c["exp"] = json!(1e300), Rejection::Malformed),
    ];
    for (name, change, rejection) in cases {
        let result = cluster.authenticate(&cluster.token(change)).await;
        assert_eq!(result, Err(rejected(*rejection)), "a token {name}");
    }
    assert_eq!(cluster.reviewer.reviews(), 0);
}

#[tokio::test]
async fn clocks_may_differ_a_little() {
    let cluster = Cluster::new(TestClock::new());
    let changes: [Change; 2] = [|c| c["exp"] = json!(1_799_999_995), |c| c["nbf"] = json!(1_800_000_005)];
    for change in changes {
        assert!(cluster.authenticate(&cluster.token(change)).await.is_ok());
    }
}

#[tokio::test]
async fn signatures_cannot_be_talked_away() {
    let cluster = Cluster::new(TestClock::new());
    *cluster.reviewer.answer.lock() = Some(cluster.good_review());
    let claims = cluster.claims();
    let public = cluster.key.jwk();
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let good = cluster.token(|_| ());
    let (message, signature) = good.rsplit_once('.').unwrap();
    let (header, payload) = message.split_once('.').unwrap();
    let other = SigningKey::ec("first");

    // Somebody else's key under the name of ours.
    assert_eq!(cluster.authenticate(&other.sign(&claims)).await, Err(rejected(Rejection::Signature)));
    // Our signature under other claims.
    let mut forged = claims.clone();
    forged["sub"] = json!("system:serviceaccount:istio-system:istiod");
    let forged = format!("{header}.{}.{signature}", encode(&forged));
    assert_eq!(cluster.authenticate(&forged).await, Err(rejected(Rejection::Signature)));
    // No signature.
    for algorithm in ["none", "None", "HS256", "RS256", "ES384", "ES256K", ""] {
        let header = json!({ "alg": algorithm, "kid": "first" });
        let token = format!("{}.{payload}.", encode(&header));
        assert_eq!(cluster.authenticate(&token).await, Err(rejected(Rejection::Algorithm)), "{algorithm}");
    }
    // The token brings its own key, or says that it must be understood in a new way.
    for header in [
        json!({ "alg": "ES256", "kid": "first", "jwk": public, "jku": "https://evil.test/keys" }),
        json!({ "alg": "ES256", "kid": "first", "x5u": "https://evil.test/cert" }),
    ] {
        let token = other.sign_with_header(&header, &claims);
        assert_eq!(cluster.authenticate(&token).await, Err(rejected(Rejection::Signature)));
    }
    let critical = json!({ "alg": "ES256", "kid": "first", "crit": ["b64"], "b64": false });
    let token = cluster.key.sign_with_header(&critical, &claims);
    assert_eq!(cluster.authenticate(&token).await, Err(rejected(Rejection::Algorithm)));
    assert_eq!(cluster.reviewer.reviews(), 0);
}

#[tokio::test]
async fn nonsense_is_no_token() {
    let cluster = Cluster::new(TestClock::new());
    let dots = ".".repeat(1000);
    let deep = format!("{}.e30.e30", URL_SAFE_NO_PAD.encode("[".repeat(10_000)));
    for token in [
        "x",
        "a.b",
        "a.b.c",
        "a.b.c.d",
        "..",
        &dots,
        "e30.e30.e30",
        "{}.{}.{}",
        &deep,
        "\u{fe}",
        "bnVsbA.e30.e30",
    ] {
        assert_eq!(cluster.authenticate(token).await, Err(rejected(Rejection::Malformed)), "{token}");
    }
    assert_eq!(cluster.reviewer.reviews(), 0);
    assert_eq!(cluster.keys.fetches(), 0);
}

#[tokio::test]
async fn a_deleted_pod_has_no_identity_any_more() {
    let cluster = Cluster::new(TestClock::new());
    *cluster.reviewer.answer.lock() = Some(Review::default());
    let token = cluster.token(|_| ());
    assert!(cluster.authenticate(&token).await.is_ok());
    cluster.index.remove("pod-uid");
    assert_eq!(cluster.authenticate(&token).await, Err(rejected(Rejection::Review)));
    // The API server is asked once, not once per attempt.
    assert_eq!(cluster.authenticate(&token).await, Err(rejected(Rejection::Review)));
    assert_eq!(cluster.reviewer.reviews(), 1);
}

#[tokio::test]
async fn what_the_index_does_not_know_yet_the_api_server_decides() {
    let cluster = Cluster::new(TestClock::new());
    *cluster.reviewer.answer.lock() = Some(cluster.good_review());
    let token = cluster.token(|c| c["kubernetes.io"]["pod"]["uid"] = json!("new-pod"));
    assert_eq!(cluster.authenticate(&token).await.unwrap().unwrap().id, cart());
    assert!(cluster.authenticate(&token).await.is_ok());
    assert_eq!(cluster.reviewer.reviews(), 1, "its word holds for a moment");
    cluster.clock.advance(Duration::from_secs(11));
    assert!(cluster.authenticate(&token).await.is_ok());
    assert_eq!(cluster.reviewer.reviews(), 2);
    cluster.index.add("new-pod");
    cluster.clock.advance(Duration::from_secs(11));
    assert!(cluster.authenticate(&token).await.is_ok());
    assert_eq!(cluster.reviewer.reviews(), 2);
}

#[tokio::test]
async fn reviews_are_judged() {
    let unknown_pod: Change = |c| c["kubernetes.io"]["pod"]["uid"] = json!("unknown");
    type Answer = fn(&mut Review);
    let cases: &[(Answer, Rejection)] = &[
        (|r| r.authenticated = false, Rejection::Review),
        (|r| r.audiences = Vec::new(), Rejection::Audience),
        (|r| r.audiences = vec!["api".to_owned()], Rejection::Audience),
        (|r| r.username = "admin".to_owned(), Rejection::Subject),
        (|r| r.username = "system:serviceaccount:shop:cart:x".to_owned(), Rejection::Subject),
        // The API server knows the token as somebody else's than it says.
        (|r| r.username = "system:serviceaccount:shop:admin".to_owned(), Rejection::Subject),
    ];
    for (answer, rejection) in cases {
        let cluster = Cluster::new(TestClock::new());
        let mut review = cluster.good_review();
        answer(&mut review);
        *cluster.reviewer.answer.lock() = Some(review);
        assert_eq!(cluster.authenticate(&cluster.token(unknown_pod)).await, Err(rejected(*rejection)));
        assert_eq!(cluster.reviewer.reviews(), 1);
    }
}

#[tokio::test]
async fn a_token_of_an_older_issuer_is_for_the_api_server_to_judge() {
    let cluster = Cluster::new(TestClock::new());
    *cluster.reviewer.answer.lock() = Some(cluster.good_review());
    let token = cluster.token(|c| c["iss"] = json!("https://old.example"));
    assert_eq!(cluster.authenticate(&token).await.unwrap().unwrap().id, cart());
    assert_eq!(cluster.reviewer.reviews(), 1);
}

#[tokio::test]
async fn nobody_vouches_when_nobody_answers() {
    let cluster = Cluster::new(TestClock::new());
    let token = cluster.token(|c| c["kubernetes.io"]["pod"]["uid"] = json!("unknown"));
    assert!(matches!(cluster.authenticate(&token).await, Err(AuthError::Unavailable(_))));
    *cluster.reviewer.answer.lock() = Some(cluster.good_review());
    assert!(cluster.authenticate(&token).await.is_ok(), "an outage is not remembered against a token");
}

#[tokio::test(start_paused = true)]
async fn a_new_key_is_fetched_once_when_its_first_tokens_come() {
    let cluster = Cluster::new(TestClock::new());
    assert!(cluster.authenticate(&cluster.token(|_| ())).await.is_ok());
    let second = SigningKey::ec("second");
    cluster.keys.publish(&[&cluster.key, &second]);
    tokio::time::advance(Duration::from_secs(11)).await;
    let tokens: Vec<String> = (0..50)
        .map(|i| {
            let mut claims = cluster.claims();
            claims["jti"] = json!(i);
            second.sign(&claims)
        })
        .collect();
    let results = futures::future::join_all(tokens.iter().map(|token| cluster.authenticate(token))).await;
    assert!(results.iter().all(|result| result.is_ok()), "{results:?}");
    assert_eq!(cluster.keys.fetches(), 2);
    assert!(cluster.authenticate(&cluster.token(|_| ())).await.is_ok(), "the old key is still published");
}

#[tokio::test(start_paused = true)]
async fn junk_costs_the_api_server_nothing() {
    let cluster = Cluster::new(TestClock::new());
    *cluster.reviewer.answer.lock() = Some(cluster.good_review());
    assert!(cluster.authenticate(&cluster.token(|_| ())).await.is_ok());
    let stranger = SigningKey::ec("stranger");
    for i in 0..2000 {
        let mut claims = cluster.claims();
        claims["jti"] = json!(i);
        let header = json!({ "alg": "ES256", "kid": format!("kid-{i}") });
        let token = stranger.sign_with_header(&header, &claims);
        assert_eq!(cluster.authenticate(&token).await, Err(rejected(Rejection::UnknownKey)));
        // 2,000 tokens in 20 seconds.
        tokio::time::advance(Duration::from_millis(10)).await;
    }
    assert!((2..=3).contains(&cluster.keys.fetches()), "{}", cluster.keys.fetches());
    assert_eq!(cluster.reviewer.reviews(), 0);
}

#[tokio::test(start_paused = true)]
async fn without_keys_the_api_server_is_asked_but_not_flooded() {
    let cluster = Cluster::new(TestClock::new());
    *cluster.keys.published.lock() = None;
    *cluster.reviewer.answer.lock() = Some(Review::default());
    let mut shed = 0;
    for i in 0..2000 {
        let token = cluster.token(|c| c["jti"] = json!(i));
        shed += usize::from(matches!(cluster.authenticate(&token).await, Err(AuthError::Unavailable(_))));
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    // In two seconds: a burst of 100, then 50 a second.
    assert!((150..=202).contains(&cluster.reviewer.reviews()), "{}", cluster.reviewer.reviews());
    assert_eq!(shed + cluster.reviewer.reviews(), 2000);
    assert_eq!(cluster.keys.fetches(), 1);
}

#[tokio::test(start_paused = true)]
async fn keys_serve_while_the_api_server_is_away_but_not_for_ever() {
    let cluster = Cluster::new(TestClock::new());
    assert!(cluster.authenticate(&cluster.token(|_| ())).await.is_ok());
    *cluster.keys.published.lock() = None;
    let fresh = |i: u64| cluster.token(move |c| c["jti"] = json!(i));
    tokio::time::advance(Duration::from_secs(3600)).await;
    assert!(cluster.authenticate(&fresh(1)).await.is_ok());
    assert_eq!(cluster.keys.fetches(), 2, "a fetch was tried");
    tokio::time::advance(Duration::from_secs(12 * 3600)).await;
    assert!(matches!(cluster.authenticate(&fresh(2)).await, Err(AuthError::Unavailable(_))));
}

#[tokio::test(start_paused = true)]
async fn a_key_that_was_taken_back_stops_serving() {
    let cluster = Cluster::new(TestClock::new());
    let (first, second) = (cluster.token(|_| ()), cluster.token(|c| c["jti"] = json!("other")));
    assert!(cluster.authenticate(&first).await.is_ok());
    cluster.keys.publish(&[&SigningKey::ec("second")]);
    tokio::time::advance(Duration::from_secs(301)).await;
    assert_eq!(cluster.authenticate(&second).await, Err(rejected(Rejection::UnknownKey)));
}

#[tokio::test]
async fn an_answer_that_holds_no_keys_changes_nothing() {
    for answer in
        [json!("<html>"), json!({}), json!({ "keys": [] }), json!({ "keys": [{ "kty": "oct", "k": "AA" }] })]
    {
        let cluster = Cluster::new(TestClock::new());
        *cluster.keys.published.lock() = Some(answer);
        let result = cluster.authenticate(&cluster.token(|_| ())).await;
        assert!(matches!(result, Err(AuthError::Unavailable(_))), "{result:?}");
    }
}

#[tokio::test]
async fn keys_of_other_kinds_are_passed_over() {
    let cluster = Cluster::new(TestClock::new());
    let keys = json!({ "keys": [
        { "kty": "OKP", "crv": "Ed25519", "kid": "first", "x": "AA" },
        { "kty": "RSA", "kid": "first", "use": "enc", "n": "AQAB", "e": "AQAB" },
        { "kty": "EC", "crv": "P-256", "kid": "first", "x": "AA", "y": "AA" },
        "no key at all",
        cluster.key.jwk(),
    ]});
    *cluster.keys.published.lock() = Some(keys);
    assert!(cluster.authenticate(&cluster.token(|_| ())).await.is_ok());
}

#[tokio::test]
async fn a_verified_token_ends_in_time() {
    let cluster = Cluster::new(TestClock::new());
    let token = cluster.token(|_| ());
    assert!(cluster.authenticate(&token).await.is_ok());
    cluster.clock.advance(Duration::from_secs(3599));
    assert!(cluster.authenticate(&token).await.is_ok());
    cluster.clock.advance(Duration::from_secs(12));
    assert_eq!(cluster.authenticate(&token).await, Err(rejected(Rejection::Expired)));
}
