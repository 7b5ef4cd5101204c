//! A faulty network: a TCP proxy between a worker and its nats-server, told by the test what to do to the bytes.
//!
//! It forwards whole protocol frames (a control line and its payload), so that a [`Trap`] can say "when the publish of this
//! event has passed, let nothing come back": the server stores it and answers, and the answer is lost, at the same place in
//! every run. A frame that is cut in two is sent in two. Each proxy has a thread of its own: a test that blocks does not
//! stand in the way of the network.
//!
//! A partition of real packets is [`Flow::Hold`]: TCP keeps what was sent and delivers it when the link is mended, even when
//! the sender has closed its end meanwhile. [`Flow::Drop`] is a peer that reads and does nothing.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::{PATIENCE, Server};

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the worker.
    ToServer,
    /// To the worker.
    ToClient,
}

/// What happens to the bytes of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// They pass.
    Pass,
    /// They wait, as in TCP while no packet arrives.
    Hold,
    /// They are taken and never seen again.
    Drop,
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// At once, with RST.
    Reset,
    /// Orderly, with FIN.
    Close,
}

/// What a trap does to the frame that springs it, and after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spring {
    /// Nothing: it only tells.
    Tell,
    /// The frame passes, and nothing comes back on its connection.
    LoseAnswers,
    /// That many bytes of the frame pass, then the connection is reset.
    CutAfter(usize),
}

/// State of the link, for all connections.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Link {
    flows: [Flow; 2],
    delay: Duration,
    /// Bytes per second, each way.
    rate: Option<u32>,
    /// New connections are refused.
    down: bool,
    /// Raised by each cut.
    cuts: u64,
    how: Cut,
}

struct Armed {
    direction: Direction,
    needles: Vec<String>,
    spring: Spring,
    sprung: watch::Sender<bool>,
}

struct Shared {
    /// Frames of the client's protocol; else bytes as they come.
    framed: bool,
    link: watch::Sender<Link>,
    traps: Mutex<Vec<Armed>>,
    passed: watch::Sender<[u64; 2]>,
    connections: watch::Sender<u32>,
}

/// One faulty link.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    _end: tokio::sync::oneshot::Sender<()>,
}

/// Waits for a frame.
pub struct Trap(watch::Receiver<bool>);

impl Trap {
    /// Until the frame came by.
    pub async fn sprung(&mut self) {
        let sprung = tokio::time::timeout(PATIENCE, self.0.wait_for(|sprung| *sprung)).await;
        sprung.expect("the frame that the trap waits for never came").expect("the proxy runs");
    }

    /// Whether it did.
    pub fn is_sprung(&self) -> bool {
        *self.0.borrow()
    }
}

impl Proxy {
    /// A link to `server` that works.
    pub fn before(server: &Server) -> Self {
        Self::start(server.port(), true)
    }

    /// A link to anything else that listens at `port`, without traps.
    pub fn of_bytes(port: u16) -> Self {
        Self::start(port, false)
    }

    fn start(upstream: u16, framed: bool) -> Self {
        let link = Link { flows: [Flow::Pass; 2], delay: Duration::ZERO, rate: None, down: false, cuts: 0, how: Cut::Reset };
        let shared = Arc::new(Shared {
            framed,
            link: watch::Sender::new(link),
            traps: Mutex::default(),
            passed: watch::Sender::new([0; 2]),
            connections: watch::Sender::new(0),
        });
        let (_end, ended) = tokio::sync::oneshot::channel::<()>();
        let (port_sender, port) = std::sync::mpsc::channel();
        let mine = Arc::clone(&shared);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                tokio::select! {
                    error = listen(mine, upstream, port_sender) => panic!("the proxy cannot listen: {error:?}"),
                    _ = ended => {}
                }
            });
        });
        let port = port.recv().expect("the proxy listens");
        Self { port, shared, _end }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where the worker connects.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// What happens to bytes of `direction` from now on, on all connections.
    pub fn set(&self, direction: Direction, flow: Flow) {
        self.shared.link.send_modify(|link| link.flows[direction as usize] = flow);
    }

    /// No packet passes, either way.
    pub fn partition(&self) {
        self.shared.link.send_modify(|link| link.flows = [Flow::Hold; 2]);
    }

    /// Accepts and swallows.
    pub fn swallow(&self) {
        self.shared.link.send_modify(|link| link.flows = [Flow::Drop; 2]);
    }

    /// Every byte needs so long, each way.
    pub fn delay(&self, delay: Duration) {
        self.shared.link.send_modify(|link| link.delay = delay);
    }

    /// So many bytes per second, each way and connection.
    pub fn throttle(&self, rate: Option<u32>) {
        self.shared.link.send_modify(|link| link.rate = rate);
    }

    /// Ends all connections; new ones are refused until [`Proxy::mend`].
    pub fn cut(&self, how: Cut) {
        self.shared.link.send_modify(|link| (link.cuts, link.how, link.down) = (link.cuts + 1, how, true));
    }

    /// Everything passes again, and new connections are taken.
    pub fn mend(&self) {
        let whole = |link: &mut Link| (link.flows, link.delay, link.rate, link.down) = ([Flow::Pass; 2], Duration::ZERO, None, false);
        self.shared.link.send_modify(whole);
    }

    /// Sets a trap for the next frame of `direction` whose line and payload hold all `needles`. It springs once.
    pub fn trap(&self, direction: Direction, needles: &[&str], spring: Spring) -> Trap {
        let (sprung, trap) = watch::channel(false);
        let needles = needles.iter().map(|n| (*n).to_owned()).collect();
        self.shared.traps.lock().expect("not poisoned").push(Armed { direction, needles, spring, sprung });
        Trap(trap)
    }

    /// Bytes that passed so far.
    pub fn passed(&self, direction: Direction) -> u64 {
        self.shared.passed.borrow()[direction as usize]
    }

    /// How many connections were made through it so far.
    pub fn connections(&self) -> u32 {
        *self.shared.connections.borrow()
    }

    /// Waits until there were more than `known` connections.
    pub async fn until_connected(&self, known: u32) {
        let mut connections = self.shared.connections.subscribe();
        let waited = tokio::time::timeout(PATIENCE, connections.wait_for(|n| *n > known)).await;
        waited.expect("nobody connected again").expect("the proxy runs");
    }
}

async fn listen(shared: Arc<Shared>, upstream: u16, announce: std::sync::mpsc::Sender<u16>) -> io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    // What lies in the kernel's buffers has passed for the sender: little, so that a slow link is felt.
    socket.set_recv_buffer_size(32 << 10)?;
    socket.bind("127.0.0.1:0".parse().expect("an address"))?;
    let listener = socket.listen(64)?;
    announce.send(listener.local_addr()?.port()).expect("the test waits");
    loop {
        let (client, _) = listener.accept().await?;
        if shared.link.borrow().down {
            reset(&client);
            continue;
        }
        // A server that is away answers nobody.
        let Ok(server) = TcpStream::connect(("127.0.0.1", upstream)).await else {
            reset(&client);
            continue;
        };
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        shared.connections.send_modify(|n| *n += 1);
        tokio::spawn(serve(Arc::clone(&shared), client, server));
    }
}

/// With no time to linger the close that follows sends RST.
fn reset(socket: impl std::os::fd::AsFd) {
    let _ = rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}

/// One connection, until either side or the test ends it.
async fn serve(shared: Arc<Shared>, client: TcpStream, server: TcpStream) {
    // Once raised, nothing comes back on this connection.
    let deaf = watch::Sender::new(false);
    let cut = watch::Sender::new(false);
    let mut link = shared.link.subscribe();
    let cuts = link.borrow_and_update().cuts;
    let linger = (dup(&client), dup(&server));
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let way = |direction| Way { shared: Arc::clone(&shared), direction, deaf: deaf.clone(), cut: cut.clone() };
    let mut hear_cut = cut.subscribe();
    let how = tokio::select! {
        // Both run to their ends: a client that has closed may still have bytes on their way.
        _ = async { tokio::join!(way(Direction::ToServer).run(client_read, server_write), way(Direction::ToClient).run(server_read, client_write)) } => Cut::Close,
        // It holds the lock: to borrow again would wait for a writer that waits for this.
        now = link.wait_for(|link| link.cuts > cuts) => now.map_or(Cut::Close, |link| link.how),
        _ = hear_cut.wait_for(|cut| *cut) => Cut::Reset,
    };
    if how == Cut::Reset {
        for socket in [linger.0, linger.1].into_iter().flatten() {
            reset(socket);
        }
    }
}

fn dup(stream: &TcpStream) -> Option<std::os::fd::OwnedFd> {
    rustix::io::dup(stream).ok()
}

/// One direction of one connection.
struct Way {
    shared: Arc<Shared>,
    direction: Direction,
    deaf: watch::Sender<bool>,
    cut: watch::Sender<bool>,
}

impl Way {
    async fn run(self, mut from: OwnedReadHalf, to: OwnedWriteHalf) {
        // A few frames between reader and writer, so that a delay is no limit of the rate.
        let (queue, frames) = mpsc::channel(64);
        let writer = self.write(frames, to);
        let this = &self;
        // Owns the queue: its end is the writer's.
        let reader = async move {
            // Room for as much as a read gives: a Vec without would take 64 bytes at a time.
            let mut bytes = Vec::with_capacity(16 << 10);
            let mut link = this.shared.link.subscribe();
            loop {
                // Held bytes are not even read: they wait where TCP keeps them.
                let _ = link.wait_for(|link| link.flows[this.direction as usize] != Flow::Hold).await;
                let read = from.read_buf(&mut bytes).await;
                while let Some(length) = if this.shared.framed { frame_length(&bytes) } else { Some(bytes.len()).filter(|n| *n > 0) } {
                    let frame: Vec<u8> = bytes.drain(..length).collect();
                    if queue.send((Instant::now(), frame)).await.is_err() {
                        return;
                    }
                }
                if !matches!(read, Ok(1..)) {
                    return;
                }
            }
        };
        tokio::join!(reader, writer);
    }

    async fn write(&self, mut frames: mpsc::Receiver<(Instant, Vec<u8>)>, mut to: OwnedWriteHalf) {
        let mut link = self.shared.link.subscribe();
        while let Some((came, frame)) = frames.recv().await {
            let delay = link.borrow().delay;
            tokio::time::sleep_until(came + delay).await;
            let _ = link.wait_for(|link| link.flows[self.direction as usize] != Flow::Hold).await;
            let swallowed = link.borrow().flows[self.direction as usize] == Flow::Drop;
            if swallowed || self.direction == Direction::ToClient && *self.deaf.borrow() {
                continue;
            }
            let frame = if self.shared.framed { without_other_servers(frame) } else { frame };
            let spring = self.spring(&frame);
            // Before the frame: its answer may be here sooner than this goes on.
            if matches!(spring, Some((Spring::LoseAnswers, _))) {
                self.deaf.send_replace(true);
            }
            let passes = match spring {
                Some((Spring::CutAfter(bytes), _)) => &frame[..bytes.min(frame.len())],
                _ => &frame[..],
            };
            if self.send(passes, &mut to).await.is_err() {
                return;
            }
            let Some((spring, sprung)) = spring else { continue };
            sprung.send_replace(true);
            if matches!(spring, Spring::CutAfter(_)) {
                self.cut.send_replace(true);
                return;
            }
        }
    }

    async fn send(&self, bytes: &[u8], to: &mut OwnedWriteHalf) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let rate = self.shared.link.borrow().rate;
            let slice = rate.map_or(rest.len(), |rate| (rate as usize / 50).clamp(1, rest.len()));
            to.write_all(&rest[..slice]).await?;
            rest = &rest[slice..];
            self.shared.passed.send_modify(|passed| passed[self.direction as usize] += slice as u64);
            if let Some(rate) = rate {
                tokio::time::sleep(Duration::from_secs_f64(slice as f64 / f64::from(rate))).await;
            }
        }
        Ok(())
    }

    fn spring(&self, frame: &[u8]) -> Option<(Spring, watch::Sender<bool>)> {
        let mut traps = self.shared.traps.lock().expect("not poisoned");
        if traps.is_empty() {
            return None;
        }
        let text = String::from_utf8_lossy(&frame[..frame.len().min(4096)]);
        let at = traps.iter().position(|t| t.direction == self.direction && t.needles.iter().all(|n| text.contains(n)))?;
        let trap = traps.remove(at);
        Some((trap.spring, trap.sprung))
    }
}

/// Length of the first frame, when all of it is there: a line, and the payload whose length is the line's last word.
fn frame_length(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(2).position(|w| w == b"\r\n")? + 2;
    let line = std::str::from_utf8(&bytes[..end - 2]).unwrap_or_default();
    let mut words = line.split_ascii_whitespace();
    let whole = match words.next().map(str::to_ascii_uppercase).as_deref() {
        Some("PUB" | "HPUB" | "MSG" | "HMSG") => end + words.last()?.parse::<usize>().expect("a length") + 2,
        _ => end,
    };
    (bytes.len() >= whole).then_some(whole)
}

/// A server of a cluster tells its clients where the others are; a client that knows would go round the faulty link.
fn without_other_servers(frame: Vec<u8>) -> Vec<u8> {
    let Some(text) = frame.strip_prefix(b"INFO ") else { return frame };
    let mut info: serde_json::Value = serde_json::from_slice(text).expect("INFO is JSON");
    info.as_object_mut().expect("a map").remove("connect_urls");
    format!("INFO {info}\r\n").into_bytes()
}
