//! A socket between a worker and its engine that stops one request on its way.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::watch;

use super::super::PATIENCE;
use super::Engine;

/// Where the request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Awaited,
    Held,
    Passed,
}

/// One text for another.
#[derive(Debug, Clone, Copy)]
pub struct Lie {
    /// As it was written.
    pub truth: &'static str,
    /// As it is passed on.
    pub said: &'static str,
}

impl Lie {
    /// Nothing is altered.
    pub const NONE: Self = Self { truth: "", said: "" };
}

/// Passes everything on but the first request that begins as told: that one waits for the test.
pub struct Relay {
    socket: PathBuf,
    stage: Arc<watch::Sender<Stage>>,
}

impl Relay {
    /// Between somebody and `engine`; `request` is how the first line begins, such as `POST /containers/create`.
    pub fn holding(engine: &Engine, request: &'static str) -> Self {
        let (socket, listener) = listen(engine);
        let stage = Arc::new(watch::Sender::new(Stage::Awaited));
        let (mine, upstream) = (Arc::clone(&stage), engine.socket());
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                // An engine that is away refuses.
                let Ok(far) = UnixStream::connect(&upstream) else { continue };
                let (Ok(near_again), Ok(far_again)) = (near.try_clone(), far.try_clone()) else { continue };
                let stage = Arc::clone(&mine);
                std::thread::spawn(move || forth(near, far, request, &stage));
                std::thread::spawn(move || back(far_again, near_again));
            }
        });
        Self { socket, stage }
    }

    /// Passes everything on, with one text for another of the same length: in what is asked of the engine, and in what it answers.
    pub fn lying(engine: &Engine, asked: Lie, answered: Lie) -> Self {
        let (socket, listener) = listen(engine);
        let upstream = engine.socket();
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = UnixStream::connect(&upstream) else { continue };
                let (Ok(near_again), Ok(far_again)) = (near.try_clone(), far.try_clone()) else { continue };
                std::thread::spawn(move || altered(near, far, asked));
                std::thread::spawn(move || altered(far_again, near_again, answered));
            }
        });
        Self { socket, stage: Arc::new(watch::Sender::new(Stage::Passed)) }
    }

    /// As `docker.host` has it.
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Waits until the request is on its way, and stands still.
    pub async fn held(&self) {
        let mut stage = self.stage.subscribe();
        let held = tokio::time::timeout(PATIENCE, stage.wait_for(|stage| *stage == Stage::Held)).await;
        held.expect("the request that is waited for never came").expect("the relay runs");
    }

    /// Lets it go on.
    pub fn pass(&self) {
        self.stage.send_replace(Stage::Passed);
    }
}

fn listen(engine: &Engine) -> (PathBuf, UnixListener) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let socket = engine.dir.join(format!("relay{}.sock", NUMBER.fetch_add(1, Ordering::Relaxed)));
    let listener = UnixListener::bind(&socket).expect("a socket");
    (socket, listener)
}

/// A text that comes in one piece: both sides write a message of the API at once.
fn altered(mut from: UnixStream, mut to: UnixStream, Lie { truth, said }: Lie) {
    assert_eq!(truth.len(), said.len(), "its length was told before");
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let message = &mut buffer[..read];
        let found: Vec<usize> =
            message.windows(truth.len().max(1)).enumerate().filter(|(_, w)| *w == truth.as_bytes()).map(|(at, _)| at).collect();
        for at in found {
            message[at..at + said.len()].copy_from_slice(said.as_bytes());
        }
        if to.write_all(message).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

fn forth(mut near: UnixStream, mut far: UnixStream, request: &str, stage: &watch::Sender<Stage>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = near.read(&mut buffer) {
        // A client writes the head of a request at once, and no other before the answer.
        if buffer[..read].starts_with(request.as_bytes())
            && stage.send_if_modified(|stage| *stage == Stage::Awaited && std::mem::replace(stage, Stage::Held) == Stage::Awaited)
        {
            let mut stage = stage.subscribe();
            let passed = async { stage.wait_for(|stage| *stage == Stage::Passed).await.is_ok() };
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            if !runtime.block_on(passed) {
                break;
            }
        }
        if far.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = far.shutdown(Shutdown::Write);
}

fn back(mut far: UnixStream, mut near: UnixStream) {
    let _ = std::io::copy(&mut far, &mut near);
    let _ = near.shutdown(Shutdown::Write);
}
