//! Clients that abuse HTTP/2 itself: each is cut off or held back, and nobody else waits for that.

use crate::rig::{MEASURING, Running, config, plain, resident};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, split};
use tokio::time::timeout;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// `GET http://a/`, as HPACK.
const GET: &[u8] = &[0x82, 0x86, 0x84, 0x01, 0x01, b'a'];
/// `POST http://a/watch`, which goes on until the connection is drained.
const WATCH: &[u8] = &[0x83, 0x86, 0x04, 0x06, b'/', b'w', b'a', b't', b'c', b'h', 0x01, 0x01, b'a'];
/// A header `a: b`.
const TINY: &[u8] = &[0x00, 0x01, b'a', 0x01, b'b'];

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What HTTP/2 says to those who do too much.
const ENHANCE_YOUR_CALM: u32 = 11;

/// How many rounds a flood has: far more than any limit.
const ROUNDS: u32 = 100_000;
/// How long anything may take that must happen.
const PATIENCE: Duration = Duration::from_secs(60);
/// How much memory a flood may take while it lasts, in KiB.
const MEMORY: u64 = 32 << 10;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// What came of a flood.
#[derive(Debug)]
struct Outcome {
    /// How many rounds the server took before it ended the connection, or all.
    rounds: u32,
    /// Why it ended the connection, if it said so.
    reason: Option<u32>,
    is_closed: bool,
}

/// Sends `first` and then up to [`ROUNDS`] of `round`, and reads what comes back, while somebody else is served.
async fn flood(server: &Running, first: Vec<u8>, round: impl Fn(u32) -> Vec<u8>) -> Outcome {
    let mut neighbour = server.client(2).await;
    assert_eq!(neighbour.text("/hello").await, "hello 10.0.0.2");
    let before = resident();
    let (mut input, mut output) = split(server.connect(1));
    let reading = tokio::spawn(async move {
        let mut bytes = Vec::new();
        let end = input.read_to_end(&mut bytes).await;
        (bytes, end.is_ok())
    });
    let begin = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &first].concat();
    output.write_all(&begin).await.unwrap();
    let mut rounds = 0;
    while rounds < ROUNDS && output.write_all(&round(rounds)).await.is_ok() {
        rounds += 1;
        if rounds.is_multiple_of(1000) {
            let served = timeout(PATIENCE, neighbour.text("/hello")).await;
            assert_eq!(served.expect("others are served meanwhile"), "hello 10.0.0.2");
        }
    }
    let is_closed = rounds < ROUNDS;
    let _ = output.shutdown().await;
    let (bytes, _) = timeout(PATIENCE, reading).await.expect("the connection ends").unwrap();
    let grown = resident().saturating_sub(before);
    assert!(grown < MEMORY, "memory grew by {grown} KiB");
    assert_eq!(neighbour.text("/hello").await, "hello 10.0.0.2");
    Outcome { rounds, reason: reason(&bytes), is_closed }
}

/// Returns the error of the last GOAWAY in what a server has sent.
fn reason(mut bytes: &[u8]) -> Option<u32> {
    let mut found = None;
    while let [a, b, c, kind, _, _, _, _, _, rest @ ..] = bytes {
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        let payload = rest.get(..length)?;
        if *kind == GOAWAY {
            found = Some(u32::from_be_bytes(payload.get(4..8)?.try_into().ok()?));
        }
        bytes = &rest[length..];
    }
    found
}

/// Returns the id of a client's stream.
fn stream(number: u32) -> u32 {
    2 * number + 1
}

#[tokio::test]
async fn whoever_resets_its_requests_over_and_over_is_cut_off() {
    let _alone = MEASURING.lock().await;
    let server = plain(config());
    let outcome = flood(&server, Vec::new(), |round| {
        // In bursts, so that many are gone before anybody has looked at them.
        let one = |number: u32| {
            let request = frame(HEADERS, END_STREAM | END_HEADERS, stream(number), GET);
            [request, frame(RST_STREAM, 0, stream(number), &8_u32.to_be_bytes())].concat()
        };
        (0..50).flat_map(|number| one(round * 50 + number)).collect()
    })
    .await;
    assert!(outcome.is_closed && outcome.rounds < 1_000, "{outcome:?}");
    assert_eq!(outcome.reason, Some(ENHANCE_YOUR_CALM));
}

#[tokio::test]
async fn headers_that_go_on_for_ever_are_cut_off() {
    let _alone = MEASURING.lock().await;
    let server = plain(config());
    let first = frame(HEADERS, 0, 1, GET);
    let outcome = flood(&server, first, |_| frame(CONTINUATION, 0, 1, TINY)).await;
    assert!(outcome.is_closed && outcome.rounds < 20_000, "{outcome:?}");
    assert_eq!(outcome.reason, Some(ENHANCE_YOUR_CALM));
    // In the largest frames, too.
    let full = TINY.repeat(16_000 / TINY.len());
    let outcome = flood(&server, frame(HEADERS, 0, 1, GET), |_| frame(CONTINUATION, 0, 1, &full)).await;
    assert!(outcome.is_closed && outcome.rounds < 1_000, "{outcome:?}");
}

#[tokio::test]
async fn a_hundred_thousand_tiny_headers_are_not_a_request() {
    let _alone = MEASURING.lock().await;
    let server = plain(config());
    let mut bytes = frame(HEADERS, END_STREAM, 1, GET);
    let full = TINY.repeat(16_000 / TINY.len());
    let frames = 100_000 / (16_000 / TINY.len());
    for number in 0..=frames {
        let flags = if number == frames { END_HEADERS } else { 0 };
        bytes.extend(frame(CONTINUATION, flags, 1, &full));
    }
    let mut client = server.connect(1);
    let _ = client.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[]), &bytes].concat()).await;
    let mut answer = Vec::new();
    let ended = timeout(PATIENCE, client.read_to_end(&mut answer)).await;
    assert!(ended.is_ok(), "the connection is closed");
    assert!(!answer.windows(7).any(|bytes| bytes == b"settled"), "it was taken for a request");
    assert_eq!(server.client(2).await.text("/hello").await, "hello 10.0.0.2");
}

#[tokio::test]
async fn data_without_anything_in_it_is_cut_off() {
    let _alone = MEASURING.lock().await;
    let server = plain(config());
    // Its body is not read: nobody has a reason to.
    let first = frame(HEADERS, END_HEADERS, 1, WATCH);
    let outcome = flood(&server, first, |_| frame(DATA, 0, 1, &[])).await;
    assert!(outcome.is_closed && outcome.rounds < 50_000, "{outcome:?}");
    assert_eq!(outcome.reason, Some(ENHANCE_YOUR_CALM));
}

/// Each is answered, and no further one is read before the answer is on its way: whoever floods is held back by what it does
/// not read itself.
#[tokio::test]
async fn settings_and_pings_are_answered_one_after_the_other() {
    let _alone = MEASURING.lock().await;
    for (kind, payload) in [(SETTINGS, &[][..]), (PING, &[0; 8][..])] {
        let server = plain(config());
        // One that reads is answered.
        let outcome = flood(&server, Vec::new(), |_| frame(kind, 0, 0, payload)).await;
        assert!(!outcome.is_closed, "{outcome:?}");
        // One that does not read is not read from: pipes hold 64 KiB in each direction.
        let before = resident();
        let mut client = server.connect(1);
        client.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
        let flood = frame(kind, 0, 0, payload).repeat(1_000);
        let mut written = 0;
        while timeout(Duration::from_secs(2), client.write_all(&flood)).await.is_ok() {
            written += flood.len();
            assert!(written < 8 << 20, "{written} bytes were taken from one who reads nothing");
        }
        assert!(resident().saturating_sub(before) < MEMORY);
        assert_eq!(server.client(2).await.text("/hello").await, "hello 10.0.0.2");
    }
}

/// A window of nothing: what is to be sent waits, and no more of it than a buffer holds.
#[tokio::test]
async fn a_window_that_stays_shut_holds_up_nobody_else() {
    let _alone = MEASURING.lock().await;
    let server = plain(config());
    let before = resident();
    let mut client = server.connect(1);
    // SETTINGS_INITIAL_WINDOW_SIZE: 0.
    let shut = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let requests: Vec<u8> =
        (0..1_000).flat_map(|number| frame(HEADERS, END_STREAM | END_HEADERS, stream(number), GET)).collect();
    client.write_all(&[PREFACE, &shut, &requests].concat()).await.unwrap();
    let mut neighbour = server.client(2).await;
    for _ in 0..100 {
        assert_eq!(timeout(PATIENCE, neighbour.text("/hello")).await.unwrap(), "hello 10.0.0.2");
    }
    assert!(resident().saturating_sub(before) < MEMORY);
    // More than it may have at once are refused.
    let more: Vec<u8> = (1_000..20_000)
        .flat_map(|number| frame(HEADERS, END_STREAM | END_HEADERS, stream(number), GET))
        .collect();
    let (mut input, mut output) = split(client);
    let reading = tokio::spawn(async move {
        let mut bytes = Vec::new();
        let _ = input.read_to_end(&mut bytes).await;
        bytes
    });
    let _ = output.write_all(&more).await;
    let _ = output.shutdown().await;
    let bytes = timeout(PATIENCE, reading).await.expect("the connection ends").unwrap();
    assert!(!bytes.windows(7).any(|bytes| bytes == b"settled"), "data without a window");
    assert!(resident().saturating_sub(before) < MEMORY);
    assert_eq!(neighbour.text("/hello").await, "hello 10.0.0.2");
}
