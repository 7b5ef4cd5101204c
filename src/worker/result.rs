//! `WINDLASS_RESULT`: what a task gave back, read without trusting it.

use std::io::Read as _;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use serde_json::Value;

/// Largest result, bytes.
pub const MAX_RESULT: u64 = 256 * 1024;

/// Reads the result file; none when the task wrote none.
///
/// # Errors
/// One line that says what is wrong with it. A link or anything but a plain file is refused: the task could point it at
/// what only the worker may read.
pub fn read(path: &Path) -> Result<Option<Value>, String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => std::fs::File::from(fd),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(rustix::io::Errno::LOOP) => return Err("the result is a symbolic link; write a plain file to $WINDLASS_RESULT".to_owned()),
        Err(error) => return Err(format!("the result cannot be read: {error}")),
    };
    let metadata = file.metadata().map_err(|e| format!("the result cannot be read: {e}"))?;
    if !metadata.is_file() {
        return Err("the result is not a plain file; write one to $WINDLASS_RESULT".to_owned());
    }
    let mut text = Vec::new();
    file.take(MAX_RESULT + 1).read_to_end(&mut text).map_err(|e| format!("the result cannot be read: {e}"))?;
    if text.len() as u64 > MAX_RESULT {
        return Err(format!(
            "the result is larger than {MAX_RESULT} bytes ({}); store large results elsewhere and give back where",
            metadata.len()
        ));
    }
    if text.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(&text).map(Some).map_err(|e| format!("the result is not valid JSON: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_small_json_file_is_a_result() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("result.json");
        assert_eq!(read(&path), Ok(None));
        std::fs::write(&path, r#"{"metrics":{"tokens":5}}"#).unwrap();
        assert_eq!(read(&path).unwrap().unwrap()["metrics"]["tokens"], 5);
        std::fs::write(&path, "{broken").unwrap();
        assert!(read(&path).unwrap_err().starts_with("the result is not valid JSON"));
        std::fs::write(&path, format!("\"{}\"", "x".repeat(300_000))).unwrap();
        assert!(read(&path).unwrap_err().starts_with("the result is larger than"));
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
        assert!(read(&path).unwrap_err().starts_with("the result is a symbolic link"));
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(read(&path).unwrap_err().starts_with("the result is not a plain file"));
    }
}
