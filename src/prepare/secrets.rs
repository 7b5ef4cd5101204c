//! From references to values: read, checked, and kept in a type that does not print.

use std::fs::File;
use std::io::Read as _;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use secrecy::{ExposeSecret as _, SecretSlice};

use crate::bus::Bus;
use crate::mask::{MaskError, Masker, SHORTEST};
use crate::plan::Secret;
use crate::retry::Delays;
use crate::task::Reason;
use crate::task::secret::{SecretAs, SecretRef};
use crate::telemetry::causes;

/// Largest secret, and most of all secrets of a task together, bytes: what is masked has to be kept in several forms.
const LARGEST: usize = 64 * 1024;

/// How long a bucket that does not answer is asked again.
const PATIENCE: Duration = Duration::from_secs(10);

/// A secret and its value.
#[derive(Debug)]
pub struct Value {
    /// What was planned.
    pub secret: Secret,
    /// Never printed, and zeroed when it goes.
    pub value: SecretSlice<u8>,
}

/// Why a task does not get a secret. Never has a value in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("secret {name} ({reference}): {text}")]
pub struct SecretError {
    name: String,
    reference: SecretRef,
    text: String,
    /// Typed.
    pub reason: Reason,
    /// What to do.
    pub hint: &'static str,
}

/// What went wrong with one, before it is known which.
struct Fault(Reason, String, &'static str);

const ABSENT: &str = "put it there on every worker that serves the class, or correct the reference";
const UNUSABLE: &str = "store another value";

fn missing(text: impl Into<String>) -> Fault {
    Fault(Reason::SecretMissing, text.into(), ABSENT)
}

fn unusable(text: impl Into<String>) -> Fault {
    Fault(Reason::SecretMissing, text.into(), UNUSABLE)
}

fn unavailable(text: impl Into<String>) -> Fault {
    Fault(Reason::SecretUnavailable, text.into(), "look at the worker's machine and at NATS; the task is tried again")
}

/// Reads all of them. Cancel safe: reading changes nothing.
///
/// # Errors
/// The first that cannot be had.
pub async fn read(secrets: &[Secret], bus: &Bus) -> Result<Vec<Value>, SecretError> {
    let mut values = Vec::with_capacity(secrets.len());
    let mut total = 0;
    for secret in secrets {
        let named =
            |Fault(reason, text, hint)| SecretError { name: secret.name.clone(), reference: secret.reference.clone(), text, reason, hint };
        let value = read_one(secret, bus).await.map_err(named)?;
        check(value.expose_secret(), secret.delivery).map_err(named)?;
        total += value.expose_secret().len();
        if total > LARGEST {
            return Err(named(unusable(format!("with it the task's secrets are larger than {LARGEST} bytes together"))));
        }
        values.push(Value { secret: secret.clone(), value });
    }
    Ok(values)
}

/// Looks for them in everything that leaves.
///
/// # Errors
/// When they are too much.
pub fn masker(values: &[Value]) -> Result<Masker, MaskError> {
    Masker::new(values.iter().map(|value| value.value.expose_secret()))
}

async fn read_one(secret: &Secret, bus: &Bus) -> Result<SecretSlice<u8>, Fault> {
    match &secret.reference {
        SecretRef::Env(name) => {
            let value = std::env::var_os(name).ok_or_else(|| missing("the worker's environment does not have it"))?;
            Ok(std::os::unix::ffi::OsStringExt::into_vec(value).into())
        }
        SecretRef::File(path) => {
            let (path, base) = (path.clone(), secret.grant.directory().unwrap_or("/").to_owned());
            // A file system that hangs must not hold the runtime.
            let reading = crate::telemetry::spawn_blocking(move || read_file(&path, &base));
            reading.await.unwrap_or_else(|e| Err(unavailable(e.to_string())))
        }
        SecretRef::Kv { bucket, key } => read_key(bus, bucket, key).await,
    }
}

/// Opens it from its grant's directory on, which no link leads out of. Links inside are followed: Kubernetes makes secrets so.
fn read_file(path: &str, base: &str) -> Result<SecretSlice<u8>, Fault> {
    let inside = path.strip_prefix(base).unwrap_or(path).trim_start_matches('/');
    let directory = openat(CWD, base, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(not_opened)?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = openat2(&directory, inside, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS);
    let file = File::from(file.map_err(not_opened)?);
    if !file.metadata().is_ok_and(|m| m.is_file()) {
        return Err(missing("is no plain file"));
    }
    // All that is read at once, so that the buffer does not grow and leave copies behind.
    let mut value = Vec::with_capacity(LARGEST + 3);
    file.take(LARGEST as u64 + 3).read_to_end(&mut value).map_err(|e| unavailable(format!("cannot be read: {e}")))?;
    // The newline that editors and `echo` end a file with.
    if value.last() == Some(&b'\n') {
        value.pop();
        value.pop_if(|last| *last == b'\r');
    }
    Ok(value.into())
}

fn not_opened(error: Errno) -> Fault {
    match error {
        Errno::NOENT | Errno::NOTDIR => missing("there is no such file"),
        Errno::ACCESS | Errno::PERM => missing("the worker's user may not read it"),
        Errno::XDEV | Errno::LOOP => {
            Fault(Reason::PolicyRefused, "a link leads out of the directory that the tenant may refer to".to_owned(), ABSENT)
        }
        other => unavailable(format!("cannot be opened: {other}")),
    }
}

async fn read_key(bus: &Bus, bucket: &str, key: &str) -> Result<SecretSlice<u8>, Fault> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut delays = Delays::new(Duration::from_millis(50), Duration::from_secs(2));
    loop {
        match bus.kv_get(bucket, key).await {
            Ok(Some(value)) => return Ok(value.into()),
            Ok(None) => return Err(missing("the bucket or the key does not exist")),
            Err(error) if error.is_transient() && tokio::time::Instant::now() < deadline => {
                tracing::warn!(error = %causes(&error), "a secret cannot be read yet");
                delays.wait().await;
            }
            Err(error) => return Err(unavailable(error.to_string())),
        }
    }
}

/// What a value must be to be delivered and masked.
fn check(value: &[u8], delivery: SecretAs) -> Result<(), Fault> {
    if value.len() < SHORTEST {
        return Err(unusable(format!("{} bytes are too few to be masked in output; at least {SHORTEST}", value.len())));
    }
    if value.len() > LARGEST {
        return Err(unusable(format!("larger than {LARGEST} bytes")));
    }
    if delivery == SecretAs::Env && (value.contains(&0) || std::str::from_utf8(value).is_err()) {
        return Err(unusable("holds bytes that no environment variable can; ask for it with \"as\": \"file\""));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &std::path::Path, base: &std::path::Path) -> Result<Vec<u8>, (Reason, String)> {
        let read = read_file(path.to_str().unwrap(), base.to_str().unwrap());
        read.map(|value| value.expose_secret().to_vec()).map_err(|Fault(reason, text, _)| (reason, text))
    }

    #[test]
    fn a_file_loses_one_newline_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        for (text, value) in
            [("hunter2", "hunter2"), ("hunter2\n", "hunter2"), ("hunter2\r\n", "hunter2"), ("hunter2\n\n", "hunter2\n"), ("", "")]
        {
            std::fs::write(&path, text).unwrap();
            assert_eq!(file(&path, dir.path()).unwrap(), value.as_bytes(), "{text:?}");
        }
    }

    #[test]
    fn links_lead_nowhere_but_inside() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("acme");
        std::fs::create_dir_all(base.join("..data")).unwrap();
        std::fs::write(base.join("..data/db"), "inside").unwrap();
        std::fs::write(dir.path().join("other"), "outside").unwrap();
        symlink("..data/db", base.join("db")).unwrap();
        symlink("../other", base.join("up")).unwrap();
        symlink(dir.path().join("other"), base.join("away")).unwrap();
        symlink("/proc/self", base.join("proc")).unwrap();
        assert_eq!(file(&base.join("db"), &base).unwrap(), b"inside", "as Kubernetes makes them");
        for name in ["up", "away", "proc/environ"] {
            assert_eq!(file(&base.join(name), &base).unwrap_err().0, Reason::PolicyRefused, "{name}");
        }
        assert_eq!(file(&base.join("none"), &base).unwrap_err(), (Reason::SecretMissing, "there is no such file".to_owned()));
        assert_eq!(file(&base.join("..data"), &base).unwrap_err(), (Reason::SecretMissing, "is no plain file".to_owned()));
    }

    #[test]
    fn what_cannot_be_masked_or_delivered_is_refused() {
        for (value, delivery, good) in [
            (&b"12345"[..], SecretAs::Env, false),
            (b"123456", SecretAs::Env, true),
            (b"12345\xff", SecretAs::Env, false),
            (b"12345\0", SecretAs::Env, false),
            (b"12345\0\xff", SecretAs::File, true),
            (&[b'x'; LARGEST], SecretAs::Env, true),
            (&[b'x'; LARGEST + 1], SecretAs::File, false),
        ] {
            assert_eq!(check(value, delivery).is_ok(), good, "{} bytes {delivery:?}", value.len());
        }
        let secret = Secret {
            name: "A".to_owned(),
            reference: "env:ACME".parse().unwrap(),
            grant: String::from("env:ACME").try_into().unwrap(),
            delivery: SecretAs::Env,
        };
        let value = Value { secret, value: b"hunter2".to_vec().into() };
        assert!(!format!("{value:?}").contains("hunter") && !format!("{value:?}").contains("104"), "{value:?}");
    }
}
