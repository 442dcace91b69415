//! Who may have the Secrets that gateways of their namespace refer to.

use controllers::Client;
use model::SpiffeId;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::warn;

/// How often it is asked anew: what was granted is over that soon after it was taken back.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Knows who may have Secrets. Cloning shares what was asked.
#[derive(Clone)]
pub(crate) enum Permissions {
    /// Whoever has proved the namespace: there is nobody to ask.
    Everybody,
    /// Those whose service account may list the Secrets of its namespace, as in Istio.
    Ask(Client, Arc<Mutex<HashMap<Account, watch::Sender<Option<bool>>>>>),
    /// What a test says.
    #[cfg(test)]
    Known(Arc<HashMap<Account, watch::Sender<Option<bool>>>>),
}

/// Namespace and name.
type Account = (String, String);

impl Permissions {
    /// Asks the API server.
    pub(crate) fn ask(client: Client) -> Self {
        Self::Ask(client, Arc::default())
    }

    /// Returns whether a service account may have them: nothing, if anybody may. Until there is an answer, which is nothing in
    /// the channel, it may not; afterwards the last answer holds. All streams of one account share the question.
    pub(crate) fn of(&self, id: &SpiffeId) -> Option<watch::Receiver<Option<bool>>> {
        let account = (id.namespace().as_str().to_owned(), id.service_account().to_owned());
        let (client, known) = match self {
            Self::Everybody => return None,
            Self::Ask(client, known) => (client, known),
            #[cfg(test)]
            Self::Known(known) => return Some(known[&account].subscribe()),
        };
        let mut asked = known.lock();
        if let Some(sender) = asked.get(&account) {
            return Some(sender.subscribe());
        }
        let (sender, receiver) = watch::channel(None);
        asked.insert(account.clone(), sender.clone());
        tokio::spawn(follow(client.clone(), known.clone(), account, sender));
        Some(receiver)
    }
}

async fn follow(
    client: Client,
    known: Arc<Mutex<HashMap<Account, watch::Sender<Option<bool>>>>>,
    account: Account,
    sender: watch::Sender<Option<bool>>,
) {
    loop {
        match controllers::may_list_secrets(&client, &account.0, &account.1).await {
            Ok(permitted) => {
                sender.send_if_modified(|known| known.replace(permitted) != Some(permitted));
            }
            Err(error) => {
                warn!(account = format!("{}/{}", account.0, account.1), %error, "whether Secrets may be handed out is not known");
            }
        }
        tokio::time::sleep(ASK_AGAIN).await;
        // Under the lock, so that nobody subscribes in between.
        let mut asked = known.lock();
        if sender.is_closed() {
            asked.remove(&account);
            return;
        }
    }
}
