//! The namespaces that an engine of the tests lives in, and ways between its network and the machine's.

use std::io::{BufRead as _, BufReader};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::super::watchdog::{MARK, watchdog};
use super::{SEARCHED, which};

/// What keeps the namespaces: a shell that has made them fit and then waits for the end of the test process.
const HOLDER: &str = r#"
set -e
if [ -z "$INSIDE" ] && ! cut -d' ' -f5 /proc/self/mountinfo | grep -qx /; then
  # In a chroot the root is no mount point, and runc cannot change it: it becomes one here.
  mkdir "$DIR/root"
  mount --rbind / "$DIR/root"
  mount --make-rprivate "$DIR/root"
  cd "$DIR/root"
  mount --move . /
  INSIDE=1 exec chroot . sh -c "$SCRIPT"
fi
mount --make-rprivate /
# Places that are fixed in the engine: sockets of containerd's shims, dockerd's key.
for dir in /run/containerd /etc/docker; do
  mkdir -p "$dir"
  mount -t tmpfs tmpfs "$dir"
done
# For an engine that sees other cgroups than the machine does, as one in a container: what is its top is a cgroup of the machine's.
if [ -n "$CGROUP" ]; then
  for top in /sys/fs/cgroup /sys/fs/cgroup/*; do
    [ "$(stat -f -c %T "$top")" != tmpfs ] && [ -f "$top/cgroup.procs" ] || continue
    mkdir -p "$top/$CGROUP"
    for controller in $(cat "$top/cgroup.controllers" 2>/dev/null); do
      echo "+$controller" >"$top/cgroup.subtree_control" || true
    done
    for file in cpuset.cpus cpuset.mems; do
      [ ! -f "$top/$file" ] || [ -f "$top/cgroup.controllers" ] || cat "$top/$file" >"$top/$CGROUP/$file"
    done
    mount --bind "$top/$CGROUP" "$top"
    [ "$top" != /sys/fs/cgroup ] || break
  done
fi
# Another engine than the machine's: programs and libraries of the root directory of another system.
[ -z "$ENGINE_ROOT" ] || mount --rbind "$ENGINE_ROOT/usr" /usr
busybox ip link set lo up
echo ready
exec cat >/dev/null
"#;

/// A network and a mount namespace.
pub struct Ground {
    holder: Mutex<Child>,
    network: Arc<std::fs::File>,
}

impl Ground {
    /// New ones, without any network but 127.0.0.1. With `cgroup`, that one of the machine's is what is seen as the top of each
    /// hierarchy.
    pub fn new(dir: &Path, cgroup: Option<&str>) -> Result<Self, String> {
        let log = std::fs::File::create(dir.join("ground.log")).expect("a log file");
        // Unchanged, because in a chroot there is no mount at / that could be changed.
        let mut holder = Command::new(which("unshare").ok_or("no unshare")?)
            .args(["--net", "--mount", "--propagation", "unchanged", "sh", "-c", HOLDER])
            .env_clear()
            .envs([("PATH", SEARCHED), ("SCRIPT", HOLDER), (MARK, watchdog().mark())])
            .env("DIR", dir)
            .env("CGROUP", cgroup.unwrap_or_default())
            .env("ENGINE_ROOT", std::env::var_os("WINDLASS_TEST_ENGINE_ROOT").unwrap_or_default())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("unshare starts");
        watchdog().adopt(holder.id());
        let mut line = String::new();
        let read = BufReader::new(holder.stdout.as_mut().expect("piped")).read_line(&mut line);
        if read.is_err() || line != "ready\n" {
            let _ = holder.kill();
            let _ = holder.wait();
            watchdog().release(holder.id());
            let why = std::fs::read_to_string(dir.join("ground.log")).unwrap_or_default();
            return Err(format!("no namespaces for an engine here: {}", why.trim().replace('\n', " | ")));
        }
        let network = std::fs::File::open(format!("/proc/{}/ns/net", holder.id())).expect("its network");
        Ok(Self { holder: Mutex::new(holder), network: Arc::new(network) })
    }

    /// A command inside.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(which("nsenter").expect("looked for before"));
        let holder = self.holder.lock().expect("not poisoned").id();
        command.args(["--target", &holder.to_string(), "--mount", "--net", "--root", "--wd", "--"]).arg(program);
        command
    }

    /// See [`super::Engine::reach`].
    pub fn reach(&self, port: u16) {
        let listener = inside(&self.network, || TcpListener::bind(("127.0.0.1", port))).expect("the engine's port is free");
        serve(listener, move || TcpStream::connect(("127.0.0.1", port)));
    }

    /// See [`super::Engine::expose`].
    pub fn expose(&self, port: u16) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let exposed = listener.local_addr().expect("its address").port();
        let network = Arc::clone(&self.network);
        serve(listener, move || inside(&network, || TcpStream::connect(("127.0.0.1", port))));
        exposed
    }

    /// Lets the namespaces go, once nothing else is in them.
    pub fn end(&self) {
        let mut holder = self.holder.lock().expect("not poisoned");
        let _ = holder.kill();
        let _ = holder.wait();
        watchdog().release(holder.id());
    }
}

/// Does something in that network: a socket belongs for life to the network that it was made in.
fn inside<T: Send>(network: &std::fs::File, work: impl FnOnce() -> T + Send) -> T {
    let entered = || {
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may enter");
        work()
    };
    // A thread of its own, because it does not come back.
    std::thread::scope(|scope| scope.spawn(entered).join().expect("a thread"))
}

/// Passes every connection on, for as long as the test process lives.
fn serve(listener: TcpListener, connect: impl Fn() -> std::io::Result<TcpStream> + Send + 'static) {
    std::thread::spawn(move || {
        for near in listener.incoming().flatten() {
            // Who is not there refuses: the near side sees a connection that closes.
            let Ok(far) = connect() else { continue };
            let (Ok(near_again), Ok(far_again)) = (near.try_clone(), far.try_clone()) else { continue };
            std::thread::spawn(move || pass(near, far));
            std::thread::spawn(move || pass(far_again, near_again));
        }
    });
}

fn pass(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}
