//! A terminal without a window: a program believes in it, and a test reads its screen and presses its keys.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::PATIENCE;
use super::server::skip;
use super::watchdog::watchdog;

/// A program on a terminal of its own.
pub struct Pty {
    keyboard: File,
    /// Held open, so that what the terminal is set to can be read when the program is gone.
    terminal: OwnedFd,
    at_first: Termios,
    screen: Arc<Mutex<vt100::Parser>>,
    drawn: watch::Receiver<u64>,
    child: Child,
}

impl Pty {
    /// Whether there are pseudo-terminals; says so where there are none.
    pub fn available() -> bool {
        let opened = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).and_then(|keyboard| ptsname(&keyboard, Vec::new()));
        if let Err(error) = &opened {
            skip(&format!("no pseudo-terminal (/dev/ptmx, /dev/pts): {error}"));
        }
        opened.is_ok()
    }

    /// Starts the program on a terminal of that many rows and columns.
    pub fn start(mut command: Command, rows: u16, columns: u16) -> Self {
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a pseudo-terminal");
        grantpt(&keyboard).expect("granted");
        unlockpt(&keyboard).expect("unlocked");
        let name = ptsname(&keyboard, Vec::new()).expect("a name");
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let terminal = rustix::fs::open(name.as_c_str(), flags, Mode::empty()).expect("its other end");
        tcsetwinsize(&terminal, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).expect("a size");
        let end = || std::process::Stdio::from(terminal.try_clone().expect("a second handle"));
        command.stdin(end()).stdout(end()).stderr(end()).env("TERM", "xterm-256color").env_remove("NO_COLOR");
        let at_first = tcgetattr(&terminal).expect("what it is set to");
        let child = command.spawn().expect("the program starts");
        // It holds the handles that were made for the child.
        drop(command);
        watchdog().adopt(child.id().expect("just started"));
        let keyboard = File::from(keyboard);
        let screen = Arc::new(Mutex::new(vt100::Parser::new(rows, columns, 0)));
        let drawn = draw(keyboard.try_clone().expect("a second handle"), Arc::clone(&screen));
        Self { keyboard, terminal, at_first, screen, drawn, child }
    }

    /// What is on the screen.
    pub fn text(&self) -> String {
        self.screen.lock().expect("not poisoned").screen().contents()
    }

    /// Waits for something on the screen.
    pub async fn until<T>(&mut self, what: &str, mut look: impl FnMut(&str) -> Option<T>) -> T {
        let found = tokio::time::timeout(PATIENCE, async {
            loop {
                self.drawn.mark_unchanged();
                if let Some(found) = look(&self.text()) {
                    return found;
                }
                self.drawn.changed().await.expect("somebody draws");
            }
        });
        match found.await {
            Ok(found) => found,
            Err(_) => panic!("{what} is not on the screen:\n{}", self.text()),
        }
    }

    /// Waits for a line with all of these words.
    pub async fn line(&mut self, words: &[&str]) -> String {
        let has = |line: &&str| words.iter().all(|word| line.contains(word));
        self.until(&format!("a line with {words:?}"), |text| text.lines().find(has).map(str::to_owned)).await
    }

    /// Presses keys.
    pub fn press(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).expect("the terminal takes keys");
    }

    /// Sends a signal to the program.
    pub fn signal(&self, signal: Signal) {
        let pid = self.child.id().expect("it runs").cast_signed();
        kill_process(Pid::from_raw(pid).expect("not zero"), signal).expect("it runs");
    }

    /// Waits for the program's end, and checks that the terminal is as it was.
    pub async fn end(mut self) -> ExitStatus {
        let pid = self.child.id().expect("it runs");
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        let status = status.unwrap_or_else(|_| panic!("it does not end:\n{}", self.text())).expect("wait");
        watchdog().release(pid);
        let now = tcgetattr(&self.terminal).expect("what it is set to");
        let modes = |t: &Termios| (t.input_modes, t.output_modes, t.local_modes, t.control_modes);
        assert_eq!(modes(&now), modes(&self.at_first), "the terminal is not set as it was");
        // The last words may still be on their way.
        let given_back = |screen: &vt100::Screen| !screen.alternate_screen() && !screen.hide_cursor();
        let screen = Arc::clone(&self.screen);
        let back =
            self.until("the first screen, with its cursor", |_| given_back(screen.lock().expect("not poisoned").screen()).then_some(()));
        back.await;
        status
    }
}

/// Reads what the program draws, until nobody can draw any more.
fn draw(mut from: File, screen: Arc<Mutex<vt100::Parser>>) -> watch::Receiver<u64> {
    let (sender, drawn) = watch::channel(0);
    std::thread::spawn(move || {
        let mut bytes = [0; 16 * 1024];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            screen.lock().expect("not poisoned").process(&bytes[..count]);
            sender.send_modify(|n| *n += 1);
        }
    });
    drawn
}
