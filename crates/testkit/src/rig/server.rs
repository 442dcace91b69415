//! What the stand-ins that listen have in common.

use std::io;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;

use super::RigError;

/// A server on a thread and runtime of its own, so that no blocking test can starve it.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) address: SocketAddr,
    /// `None` runs on; a limit ends it within that time. Dropping the sender ends it at once.
    stop: Option<watch::Sender<Option<Duration>>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    /// Binds `listen` and runs `serve` until it returns. Its thread is called `name`.
    pub(super) fn start<F, S>(name: &str, listen: SocketAddr, serve: F) -> Result<Self, RigError>
    where
        F: FnOnce(TcpListener, watch::Receiver<Option<Duration>>) -> S + Send + 'static,
        S: Future<Output = ()>,
    {
        let (stop, stopped) = watch::channel(None);
        let (bound, wait_bound) = mpsc::channel();
        let body = move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(bound.send(Err(error))),
            };
            runtime.block_on(async move {
                let listener = TcpListener::bind(listen).await;
                match listener.and_then(|listener| Ok((listener.local_addr()?, listener))) {
                    Ok((address, listener)) => {
                        let _ = bound.send(Ok(address));
                        serve(listener, stopped).await;
                    }
                    Err(error) => drop(bound.send(Err(error))),
                }
            });
        };
        let context = || format!("could not listen on {listen} for {name}");
        let thread = thread::Builder::new().name(name.to_owned()).spawn(body);
        let thread = thread.map_err(RigError::io(context()))?;
        let address = wait_bound.recv().unwrap_or_else(|gone| Err(io::Error::other(gone)));
        let address = address.map_err(RigError::io(context()))?;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    /// Ends it within `limit`.
    pub(super) fn stop(mut self, limit: Duration) {
        if let Some(stop) = &self.stop {
            stop.send_replace(Some(limit));
        }
        self.join();
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            // It panics only if a handler does, which has been printed.
            let _ = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop = None;
        self.join();
    }
}

/// Waits for the end; returns how long what has begun may take.
pub(super) async fn ended(stop: &mut watch::Receiver<Option<Duration>>) -> Duration {
    loop {
        if let Some(limit) = *stop.borrow_and_update() {
            return limit;
        }
        if stop.changed().await.is_err() {
            return Duration::ZERO;
        }
    }
}
