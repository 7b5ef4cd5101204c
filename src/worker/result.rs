//! `WINDLASS_RESULT`: what a task gave back, read without trusting it.

use std::io::Read as _;

use serde_json::Value;

use crate::prepare::{Inside, RESULT};
use crate::task::nesting;

/// Largest result, bytes.
pub const MAX_RESULT: u64 = 256 * 1024;

/// Reads the result file; none when the task wrote none. Blocks on the disk.
///
/// # Errors
/// One line that says what is wrong with it.
pub fn read(inside: &Inside) -> Result<Option<Value>, String> {
    let file = inside.file(RESULT).map_err(|unusable| format!("the result in $WINDLASS_RESULT {unusable}"))?;
    let Some(file) = file else { return Ok(None) };
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    let mut text = Vec::new();
    // No more than that, however long it is or becomes.
    file.take(MAX_RESULT + 1).read_to_end(&mut text).map_err(|e| format!("the result cannot be read: {e}"))?;
    if text.len() as u64 > MAX_RESULT {
        return Err(format!("the result is larger than {MAX_RESULT} bytes ({length}); store large results elsewhere and give back where"));
    }
    if text.is_empty() {
        return Ok(None);
    }
    let value = serde_json::from_slice(&text).map_err(|e| format!("the result is not valid JSON: {e}"))?;
    nesting::check(&value).map_err(|e| format!("the result {e}"))?;
    Ok(Some(value))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{FileExt as _, symlink};
    use std::path::PathBuf;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    struct Place {
        dir: tempfile::TempDir,
        inside: Inside,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let inside = Inside::open(dir.path()).unwrap();
            Self { dir, inside }
        }

        fn path(&self) -> PathBuf {
            self.dir.path().join(RESULT)
        }

        fn read(&self) -> Result<Option<Value>, String> {
            read(&self.inside)
        }

        fn refused(&self, word: &str) {
            let error = self.read().expect_err(word);
            assert!(error.starts_with("the result ") && error.contains(word), "{error:?} does not say {word:?}");
            fs::remove_dir_all(self.path()).or_else(|_| fs::remove_file(self.path())).unwrap();
        }
    }

    #[test]
    fn only_a_plain_small_json_file_is_a_result() {
        let place = Place::new();
        assert_eq!(place.read(), Ok(None));
        fs::write(place.path(), r#"{"metrics":{"tokens":5}}"#).unwrap();
        assert_eq!(place.read().unwrap().unwrap()["metrics"]["tokens"], 5);
        fs::write(place.path(), "").unwrap();
        assert_eq!(place.read(), Ok(None));
        fs::write(place.path(), "{broken").unwrap();
        place.refused("is not valid JSON");
        fs::write(place.path(), format!("\"{}\"", "x".repeat(300_000))).unwrap();
        place.refused("is larger than");
        fs::write(place.path(), format!("{}1{}", "[".repeat(40), "]".repeat(40))).unwrap();
        place.refused("nested");
        fs::write(place.path(), "[".repeat(200_000)).unwrap();
        place.refused("is not valid JSON");
    }

    #[test]
    fn nothing_but_a_plain_file_of_its_own_is_opened() {
        let place = Place::new();
        let secret = place.dir.path().join("secret");
        fs::write(&secret, r#"{"secret":1}"#).unwrap();
        symlink(&secret, place.path()).unwrap();
        place.refused("symbolic link");
        symlink("/proc/self/environ", place.path()).unwrap();
        place.refused("symbolic link");
        symlink(RESULT, place.path()).unwrap();
        place.refused("symbolic link");
        fs::hard_link(&secret, place.path()).unwrap();
        place.refused("hard link");
        fs::create_dir(place.path()).unwrap();
        place.refused("not a plain file");
        // A reader of a pipe would wait for its writer.
        mknodat(CWD, place.path(), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        place.refused("not a plain file");
        let _socket = std::os::unix::net::UnixListener::bind(place.path()).unwrap();
        place.refused("not a plain file");
        if mknodat(CWD, place.path(), FileType::CharacterDevice, Mode::RUSR, rustix::fs::makedev(1, 5)).is_ok() {
            place.refused("not a plain file");
        }
    }

    #[test]
    fn a_file_without_end_is_read_to_the_limit_only() {
        let place = Place::new();
        let file = fs::File::create(place.path()).unwrap();
        file.set_len(1 << 40).or_else(|_| file.set_len(1 << 33)).unwrap();
        place.refused("is larger than");
        let file = fs::File::create(place.path()).unwrap();
        let writing = std::sync::atomic::AtomicBool::new(true);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut at = 0;
                while writing.load(std::sync::atomic::Ordering::Relaxed) && at < 1 << 30 {
                    file.write_all_at(&[b' '; 65536], at).unwrap();
                    at += 65536;
                }
            });
            while fs::metadata(place.path()).unwrap().len() <= MAX_RESULT {
                std::thread::yield_now();
            }
            let error = place.read().unwrap_err();
            writing.store(false, std::sync::atomic::Ordering::Relaxed);
            assert!(error.contains("is larger than"), "{error}");
        });
    }

    #[test]
    fn a_directory_that_is_exchanged_meanwhile_is_not_looked_into() {
        let dir = tempfile::tempdir().unwrap();
        let (own, secret) = (dir.path().join("own"), dir.path().join("secret"));
        for (path, text) in [(&own, "1"), (&secret, "2")] {
            fs::create_dir(path).unwrap();
            fs::write(path.join(RESULT), text).unwrap();
        }
        let inside = Inside::open(&own).unwrap();
        // As fast as it can: the directory away, a link to the other one in its place, and back.
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    fs::rename(&own, dir.path().join("away")).unwrap();
                    symlink(&secret, &own).unwrap();
                    fs::remove_file(&own).unwrap();
                    fs::rename(dir.path().join("away"), &own).unwrap();
                }
            });
            for _ in 0..2000 {
                assert_eq!(read(&inside), Ok(Some(Value::from(1))));
            }
            over.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }

    #[test]
    fn what_is_mounted_over_it_is_not_read() {
        let place = Place::new();
        let secret = place.dir.path().join("secret");
        fs::write(&secret, "2").unwrap();
        fs::write(place.path(), "1").unwrap();
        if let Err(error) = rustix::mount::mount_bind(&secret, place.path()) {
            return println!("SKIPPED: no mounts for this user: {error}");
        }
        let read = place.read();
        rustix::mount::unmount(place.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
        assert!(read.unwrap_err().contains("is a mount"));
    }

    #[test]
    fn in_a_directory_of_another_user_only_that_users_files_count() {
        if !rustix::process::geteuid().is_root() {
            return println!("SKIPPED: needs root to give a directory away");
        }
        let place = Place::new();
        fs::write(place.path(), "1").unwrap();
        std::os::unix::fs::chown(place.dir.path(), Some(65534), None).unwrap();
        assert!(place.read().unwrap_err().contains("another user"));
        std::os::unix::fs::chown(place.path(), Some(65534), None).unwrap();
        assert_eq!(place.read(), Ok(Some(Value::from(1))));
    }
}
