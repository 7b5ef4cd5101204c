//! Disks of a test's own, to be filled, slowed down and cut off: an ext4 image on a loop device.
//!
//! It is mounted in a mount namespace of its own, which a waiting shell holds. Only what is started [`Disk::under`] it sees
//! it, and when the shell and those are gone, however that came, the kernel unmounts it and frees the loop device. The
//! test itself looks through `/proc/<shell>/root`.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::server::skip;
use super::watchdog::{MARK, watchdog};

/// What a process is started under.
#[derive(Debug, Clone, Default)]
pub struct Under {
    /// Goes before its own command line, and replaces itself by it.
    pub argv: Vec<String>,
    /// State directory of a worker, as itself and as the test sees it; none: the usual one.
    pub state: Option<(PathBuf, PathBuf)>,
}

/// A mounted image.
pub struct Disk {
    image: PathBuf,
    mount: PathBuf,
    options: &'static str,
    holder: Child,
}

/// How an image is made.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Size.
    pub mebibytes: u64,
    /// Files it can hold; none: plenty.
    pub inodes: Option<u32>,
    /// Mount options.
    pub options: &'static str,
}

impl Default for Shape {
    fn default() -> Self {
        Self { mebibytes: 48, inodes: None, options: "loop,nosuid,nodev" }
    }
}

/// What `unshare --mount` is told: private, but in a chroot, whose root is no mount that could be.
pub fn propagation() -> &'static str {
    if super::chrooted() { "unchanged" } else { "private" }
}

impl Disk {
    /// Makes and mounts an image; `None` (with a word why) where that cannot be done.
    pub fn make(shape: Shape) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
            skip("a disk of the test's own needs root and loop devices");
            return None;
        }
        let dir = watchdog().dir().join(format!("disk-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        let (image, mount) = (dir.join("image"), dir.join("mnt"));
        std::fs::create_dir_all(&mount).expect("the disk's directory");
        File::create(&image).and_then(|file| file.set_len(shape.mebibytes << 20)).expect("the image");
        let mut mkfs = Command::new("mkfs.ext4");
        mkfs.args(["-q", "-F", "-m", "0", "-b", "4096", "-J", "size=4"]);
        if let Some(inodes) = shape.inodes {
            mkfs.args(["-N", &inodes.to_string()]);
        }
        match mkfs.arg(&image).output() {
            Ok(made) if made.status.success() => {}
            other => {
                skip(&format!("no mkfs.ext4 (Debian: apt-get install e2fsprogs): {other:?}"));
                return None;
            }
        }
        let script = format!("mount -o {} '{}' '{}' && echo mounted && cat > /dev/null", shape.options, image.display(), mount.display());
        let mut holder = Command::new("unshare")
            .args(["--mount", "--propagation", propagation(), "sh", "-c", &script])
            .env(MARK, watchdog().mark())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare of util-linux");
        watchdog().adopt(holder.id());
        let mut said = String::new();
        let stdout = holder.stdout.take().expect("piped");
        let _ = BufReader::new(stdout).read_line(&mut said);
        let disk = Self { image, mount, options: shape.options, holder };
        if said.trim() != "mounted" {
            skip("an image cannot be mounted here");
            return None;
        }
        Some(disk)
    }

    /// Where it is, for what runs under it.
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// Where it is for the test.
    pub fn seen(&self) -> PathBuf {
        Path::new("/proc").join(self.holder.id().to_string()).join("root").join(self.mount.strip_prefix("/").expect("absolute"))
    }

    /// For whoever is to see it; a worker keeps its state there.
    pub fn under(&self) -> Under {
        let holder = self.holder.id().to_string();
        // With its root: in a chroot who enters a namespace would be outside.
        let argv = ["nsenter", "--target", &holder, "--mount", "--root", "--wd", "--"].map(str::to_owned);
        Under { argv: argv.to_vec(), state: Some((self.mount.join("state"), self.seen().join("state"))) }
    }

    /// Writes until nothing more goes in, then frees `spare` bytes again.
    pub fn fill(&self, spare: u64) {
        let path = self.seen().join("filler");
        let mut file = File::options().create(true).append(true).open(&path).expect("the filler");
        let size = |file: &File| file.metadata().expect("its size").len();
        let mut before = u64::MAX;
        // What the kernel had set aside for the way to the disk is free again once it is there.
        while before != size(&file) {
            before = size(&file);
            for step in [1 << 20, 4096, 1] {
                while file.write_all(&vec![0; step]).is_ok() {}
            }
            file.sync_all().expect("sync");
        }
        file.set_len(before.saturating_sub(spare)).expect("shrink");
        file.sync_all().expect("sync");
    }

    /// Makes files until no more can be made.
    pub fn fill_inodes(&self) {
        let dir = self.seen().join("fillers");
        let _ = std::fs::create_dir(&dir);
        let failed = (0..).find_map(|n| File::create(dir.join(n.to_string())).err());
        assert_eq!(failed.map(|e| e.kind()), Some(std::io::ErrorKind::StorageFull));
    }

    /// Takes back what fills it.
    pub fn free(&self) {
        let _ = std::fs::remove_file(self.seen().join("filler"));
        let _ = std::fs::remove_dir_all(self.seen().join("fillers"));
    }

    /// Everything written so far survives a power cut.
    pub fn sync(&self) {
        rustix::fs::syncfs(File::open(self.seen()).expect("the disk")).expect("syncfs");
    }

    /// From now on nothing reaches the disk, and what was only in memory never will: `EXT4_IOC_SHUTDOWN` without flushing
    /// the journal.
    pub fn cut_power(&self) {
        let script = "import fcntl, os, struct, sys; \
            fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";
        let python = std::env::var_os("WINDLASS_TEST_PYTHON").unwrap_or_else(|| "python3".into());
        let cut = Command::new(python).args(["-c", script]).arg(self.seen()).output().expect("python3");
        assert!(cut.status.success(), "{}", String::from_utf8_lossy(&cut.stderr));
    }

    /// The power is back: unmounts it, which nobody may use any more, and mounts it again, with the journal replayed.
    pub fn power_up(&self) {
        self.run("umount", &[&self.mount]);
        self.run("mount", &[Path::new("-o"), Path::new(self.options), &self.image, &self.mount]);
    }

    /// Changes mount options: `ro`, `rw`.
    pub fn remount(&self, option: &str) {
        self.run("mount", &[Path::new("-o"), Path::new(&format!("remount,{option}")), &self.mount]);
    }

    fn run(&self, program: &str, args: &[&Path]) {
        let under = self.under().argv;
        let run = Command::new(&under[0]).args(&under[1..]).arg(program).args(args).output().expect("nsenter");
        assert!(run.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&run.stderr));
    }

    /// The device below it, `major:minor`.
    pub fn device(&self) -> String {
        let dev = std::fs::metadata(self.seen()).expect("the disk").dev();
        format!("{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Closes its standard input: the shell ends, and the mount goes with whoever used it last.
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
        watchdog().release(self.holder.id());
        if std::env::var_os("WINDLASS_TEST_KEEP").is_none() {
            let _ = std::fs::remove_file(&self.image);
        }
    }
}

/// A cgroup whose processes write slowly to one disk.
pub struct Slow(PathBuf);

impl Slow {
    /// `writes` a second to `disk` at most; `None` (with a word why) where that cannot be set.
    pub fn new(disk: &Disk, writes: u32) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let root = Path::new("/sys/fs/cgroup");
        // The name is one that the watchdog removes.
        let name = format!("windlass-test-w{}-slow{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let (dir, file, text) = if root.join("blkio/blkio.throttle.write_iops_device").exists() {
            (root.join("blkio").join(name), "blkio.throttle.write_iops_device", format!("{} {writes}", disk.device()))
        } else {
            let _ = std::fs::write(root.join("cgroup.subtree_control"), "+io");
            (root.join(name), "io.max", format!("{} wiops={writes}", disk.device()))
        };
        let made = std::fs::create_dir(&dir).and_then(|()| std::fs::write(dir.join(file), text));
        if let Err(error) = made {
            let _ = std::fs::remove_dir(&dir);
            skip(&format!("the kernel cannot throttle a disk here: {error}"));
            return None;
        }
        Some(Self(dir))
    }

    /// Puts a process there, with all of its threads.
    pub fn hold(&self, pid: u32) {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string()).expect("the process is there");
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        let root = self.0.parent().expect("a parent").join("cgroup.procs");
        for pid in std::fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default().split_whitespace() {
            let _ = std::fs::write(&root, pid);
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}
