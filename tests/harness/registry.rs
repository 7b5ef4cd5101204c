//! A real docker-registry on a free port of 127.0.0.1, and images pushed to it byte by byte: without an engine, so that tests know
//! every digest and size.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use windlass::wire::sha256_hex;

use super::server::{free_port, skip};
use super::watchdog::{MARK, watchdog};

/// Who may read and write at a registry with passwords. The password has bytes that are written differently in the two
/// alphabets of base64.
pub const USER: &str = "windlass";
/// Its password.
pub const PASSWORD: &str = "~~~???>>>hunter2";
/// bcrypt of [`PASSWORD`], as `htpasswd -B` writes it.
const HASHED: &str = "$2y$04$zwWRkGTQ4TPHsbeaDfNlIedkGmUJZzMssBtwESufvfO3ufTm5DmZy";

/// A running registry.
pub struct Registry {
    port: u16,
    dir: PathBuf,
    locked: bool,
    child: Child,
}

/// An image in a registry.
#[derive(Debug, Clone)]
pub struct Pushed {
    /// `sha256:…` of its manifest.
    pub digest: String,
    /// `sha256:…` of the image itself, by which the engine has it.
    pub id: String,
    /// `sha256:…` of its layers.
    pub layers: Vec<String>,
}

impl Registry {
    /// One that is open to all; `None` (with a word why) where there is no docker-registry.
    pub fn open() -> Option<Arc<Self>> {
        Self::launch(false)
    }

    /// One that wants [`USER`] and [`PASSWORD`].
    pub fn locked() -> Option<Arc<Self>> {
        Self::launch(true)
    }

    fn launch(locked: bool) -> Option<Arc<Self>> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let Some(binary) = std::env::split_paths(&path).map(|dir| dir.join("docker-registry")).find(|path| path.is_file()) else {
            skip("no docker-registry (Debian: apt-get install docker-registry)");
            return None;
        };
        let dir = watchdog().dir().join(format!("registry-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir_all(dir.join("data")).expect("the registry's directory");
        let deadline = Instant::now() + super::PATIENCE * super::slowness();
        while Instant::now() < deadline {
            let port = free_port();
            std::fs::write(dir.join("config.yml"), config(&dir, port, locked)).expect("its configuration");
            let log = std::fs::File::create(dir.join("log")).expect("its log");
            let mut child = Command::new(&binary)
                .arg("serve")
                .arg(dir.join("config.yml"))
                .env(MARK, watchdog().mark())
                .stdin(Stdio::null())
                .stdout(log.try_clone().expect("a handle"))
                .stderr(log)
                .spawn()
                .expect("docker-registry starts");
            watchdog().adopt(child.id());
            // Somebody else may have taken the port meanwhile: then it ends.
            while child.try_wait().expect("its state").is_none() {
                if answers(port) {
                    return Some(Arc::new(Self { port, dir, locked, child }));
                }
                assert!(Instant::now() < deadline, "docker-registry does not come up; see {}", dir.display());
                std::thread::sleep(Duration::from_millis(5));
            }
            watchdog().release(child.id());
        }
        panic!("no docker-registry came up; see {}", dir.display());
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many requests its log has that hold all `needles`, such as `"GET /v2/a/manifests/"`.
    pub fn requests(&self, needles: &[&str]) -> usize {
        let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        log.lines().filter(|line| line.contains("HTTP/1.1\" ") && needles.iter().all(|needle| line.contains(needle))).count()
    }

    /// Requests of engines for the manifests and layers of one name, by method and path.
    pub fn pulls(&self, name: &str) -> usize {
        self.requests(&[&format!("/v2/{name}/"), "docker/"])
    }

    /// Pushes an image with these files, each a layer of its own.
    pub fn push(&self, name: &str, tag: &str, files: &[(&str, &[u8])], config: &Value) -> Pushed {
        let tars: Vec<Vec<u8>> = files.iter().map(|(path, bytes)| tar(path, bytes)).collect();
        self.push_tars(name, tag, &tars, config)
    }

    /// Pushes an image with these archives as layers.
    pub fn push_tars(&self, name: &str, tag: &str, tars: &[Vec<u8>], config: &Value) -> Pushed {
        let layers: Vec<String> = tars.iter().map(|tar| self.blob(name, tar)).collect();
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let image = json!({
            "architecture": architecture, "os": "linux", "config": config, "rootfs": {"type": "layers", "diff_ids": layers}});
        let image = image.to_string();
        let id = self.blob(name, image.as_bytes());
        let part = |kind: &str, size: usize, digest: &str| json!({"mediaType": format!("application/vnd.docker.{kind}"), "size": size, "digest": digest});
        let list: Vec<Value> = layers.iter().zip(tars).map(|(layer, tar)| part("image.rootfs.diff.tar.gzip", tar.len(), layer)).collect();
        let kind = "application/vnd.docker.distribution.manifest.v2+json";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": kind, "config": part("container.image.v1+json", image.len(), &id), "layers": list});
        let manifest = manifest.to_string();
        let (status, head) = self.send("PUT", &format!("/v2/{name}/manifests/{tag}"), kind, manifest.as_bytes());
        assert_eq!(status, 201, "{head}");
        let digest = format!("sha256:{}", sha256_hex(manifest.as_bytes()));
        // Engines that keep images in containerd's store know them by their manifests.
        let id = if super::docker::keeps_manifests() { digest.clone() } else { id };
        Pushed { digest, id, layers }
    }

    /// Changes one byte of a layer on the registry's disk.
    pub fn spoil(&self, digest: &str) {
        let hex = digest.trim_start_matches("sha256:");
        let path = self.dir.join("data/docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data");
        let mut bytes = std::fs::read(&path).expect("the layer");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).expect("the layer");
    }

    /// A file as `docker login` at this registry would write it, reached by `port`.
    pub fn login(&self, port: u16, user: &str, password: &str) -> PathBuf {
        let path = self.dir.join(format!("config-{}.json", sha256_hex(format!("{port} {user} {password}").as_bytes())));
        let auth = STANDARD.encode(format!("{user}:{password}"));
        std::fs::write(&path, json!({"auths": {format!("127.0.0.1:{port}"): {"auth": auth}}}).to_string()).expect("the file");
        path
    }

    fn blob(&self, name: &str, bytes: &[u8]) -> String {
        let digest = format!("sha256:{}", sha256_hex(bytes));
        let (status, head) = self.send("POST", &format!("/v2/{name}/blobs/uploads/"), "application/octet-stream", b"");
        assert_eq!(status, 202, "{head}");
        let place = head.lines().find_map(|line| line.strip_prefix("Location: ")).expect("a place for it").trim();
        let path = place.find("/v2/").map_or(place, |at| &place[at..]);
        let path = format!("{path}&digest={digest}");
        let (status, head) = self.send("PUT", &path, "application/octet-stream", bytes);
        assert_eq!(status, 201, "{head}");
        digest
    }

    fn send(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, String) {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\n", self.port);
        let _ = write!(head, "Content-Type: {kind}\r\nContent-Length: {}\r\n", body.len());
        if self.locked {
            let _ = write!(head, "Authorization: Basic {}\r\n", STANDARD.encode(format!("{USER}:{PASSWORD}")));
        }
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("the registry listens");
        stream.set_read_timeout(Some(super::PATIENCE)).expect("a time limit");
        stream.write_all(format!("{head}\r\n").as_bytes()).and_then(|()| stream.write_all(body)).expect("it takes it");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("it answers");
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        (status, answer)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        watchdog().release(self.child.id());
    }
}

fn config(dir: &Path, port: u16, locked: bool) -> String {
    let dir = dir.display();
    let mut text = format!(
        "version: 0.1\nlog: {{level: warn}}\nstorage:\n  filesystem: {{rootdirectory: \"{dir}/data\"}}\nhttp: {{addr: \"127.0.0.1:{port}\"}}\n"
    );
    if locked {
        std::fs::write(format!("{dir}/htpasswd"), format!("{USER}:{HASHED}\n")).expect("the passwords");
        let _ = writeln!(text, "auth:\n  htpasswd: {{realm: tests, path: \"{dir}/htpasswd\"}}");
    }
    text
}

fn answers(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let _ = stream.set_read_timeout(Some(super::PATIENCE));
    let asked = stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
    let mut answer = String::new();
    asked.is_ok() && stream.read_to_string(&mut answer).is_ok() && answer.to_lowercase().contains("docker-distribution-api-version")
}

/// An archive with one file.
pub fn tar(path: &str, bytes: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, path);
    put(100, "0000755\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{:011o}\0", bytes.len()));
    put(136, "00000000000\0");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = header.to_vec();
    tar.extend_from_slice(bytes);
    // Whole blocks, and two empty ones at the end.
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}
