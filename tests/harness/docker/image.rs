//! The tests' image: busybox, bash and the misbehaving programs, imported from files of this machine.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::super::{programs, watchdog::watchdog};
use super::{Engine, which};

/// What every engine of the tests has: `/bin` of busybox, bash, `/programs`. Runs `sh`, in `/`, as root.
pub const IMAGE: &str = "windlass-test/base:1";

impl Engine {
    /// Makes an image of that name from the tests' own files, changed as a Dockerfile's instructions say.
    pub fn import(&self, name: &str, changes: &[&str]) {
        self.import_tar(name, tar(), &[&["ENV PATH=/bin", "CMD [\"sh\"]"], changes].concat());
    }

    /// Makes an image of that name from an archive.
    pub fn import_tar(&self, name: &str, tar: &[u8], changes: &[&str]) {
        let (repository, tag) = name.rsplit_once(':').expect("an image with a tag");
        let changes: String = changes.iter().map(|change| format!("&changes={}", encoded(change))).collect();
        let path = format!("/images/create?fromSrc=-&repo={}&tag={tag}{changes}", encoded(repository));
        let answer = self.ask("POST", &path, tar).unwrap_or_else(|e| panic!("{name}: {e}; {}", self.log()));
        let text = answer.text();
        assert!(answer.status == 200 && !text.contains("errorDetail"), "{name}: {} {text}", answer.status);
    }
}

/// In a query.
pub fn encoded(text: &str) -> String {
    let one = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(one).collect()
}

/// The archive; made once.
pub fn tar() -> &'static [u8] {
    static TAR: OnceLock<Vec<u8>> = OnceLock::new();
    TAR.get_or_init(|| {
        let root = watchdog().dir().join("image");
        tree(&root);
        let output = Command::new("tar").arg("-C").arg(&root).args(["--owner=0", "--group=0", "-c", "."]).output().expect("tar runs");
        assert!(output.status.success(), "tar: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    })
}

fn tree(root: &Path) {
    for dir in ["bin", "usr", "etc", "tmp", "programs", "home"] {
        fs::create_dir_all(root.join(dir)).expect("a directory of the image");
    }
    // As in every real image: an engine's runtime may give it to the one in memory.
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("open to all");
    let busybox = which("busybox").expect("looked for before");
    with_libraries(&busybox, "bin/busybox", root);
    let applets = Command::new(&busybox).arg("--list").output().expect("busybox runs").stdout;
    for applet in String::from_utf8_lossy(&applets).lines().filter(|name| *name != "busybox") {
        symlink("busybox", root.join("bin").join(applet)).expect("an applet");
    }
    let _ = fs::remove_file(root.join("bin/bash"));
    with_libraries(&which("bash").expect("bash"), "bin/bash", root);
    symlink("../bin", root.join("usr/bin")).expect("a link");
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n").expect("a file");
    fs::write(root.join("etc/group"), "root:x:0:\n").expect("a file");
    for entry in fs::read_dir(programs()).expect("the programs").flatten() {
        fs::copy(entry.path(), root.join("programs").join(entry.file_name())).expect("a program");
    }
}

/// Copies a program to a place of the tree, and its libraries to where it looks for them.
pub fn with_libraries(program: &Path, at: &str, root: &Path) {
    let copy = |from: &Path, to: PathBuf| {
        fs::create_dir_all(to.parent().expect("a parent")).expect("a directory of the image");
        fs::copy(from, &to).unwrap_or_else(|e| panic!("{} to {}: {e}", from.display(), to.display()));
    };
    copy(program, root.join(at));
    // Nothing of a static one.
    let listed = Command::new("ldd").arg(program).output().map(|output| output.stdout).unwrap_or_default();
    for library in String::from_utf8_lossy(&listed).split_whitespace().filter(|word| word.starts_with('/')) {
        copy(Path::new(library), root.join(library.trim_start_matches('/')));
    }
}
