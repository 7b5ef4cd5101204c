//! Credentials, read anew for every connection: a file that is renewed in its place is taken without a restart.

use std::path::PathBuf;

use async_nats::{Auth, AuthError, ServerAddr};
use nkeys::KeyPair;

use crate::config;

/// How this client says who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Credentials {
    /// Not at all.
    None,
    /// By a credentials file: JWT and NKey seed.
    File(PathBuf),
    /// By the user information of the first server's URL, `user:password@` or `token@`; the library ignores it.
    Url {
        /// User, or token.
        user: String,
        /// None for a token.
        password: Option<String>,
    },
}

impl Credentials {
    /// As configured; a file goes before a URL.
    pub(super) fn of(config: &config::Bus) -> Self {
        if !config.creds.is_empty() {
            return Self::File(config.creds.clone().into());
        }
        let first = config.server.split(',').next().map(str::trim).unwrap_or_default();
        match first.parse::<ServerAddr>() {
            Ok(server) if server.has_user_pass() => {
                Self::Url { user: server.username().unwrap_or_default().to_owned(), password: server.password().map(str::to_owned) }
            }
            Ok(_) | Err(_) => Self::None,
        }
    }

    /// What is said to a server that wants `nonce` signed.
    pub(super) fn answer(&self, nonce: &[u8]) -> Result<Auth, AuthError> {
        let mut auth = Auth::new();
        match self {
            Self::None => {}
            Self::Url { user, password: Some(password) } => {
                (auth.username, auth.password) = (Some(user.clone()), Some(password.clone()));
            }
            Self::Url { user, password: None } => auth.token = Some(user.clone()),
            Self::File(path) => {
                let text = std::fs::read_to_string(path).map_err(|e| AuthError::new(format!("cannot read {}: {e}", path.display())))?;
                let unreadable = || AuthError::new(format!("{} holds no JWT and NKey seed", path.display()));
                let (jwt, seed) = parts(&text).ok_or_else(unreadable)?;
                let key = KeyPair::from_seed(seed).map_err(|_| unreadable())?;
                auth.signature = Some(key.sign(nonce).map_err(|_| unreadable())?);
                auth.jwt = Some(jwt.to_owned());
            }
        }
        Ok(auth)
    }
}

/// JWT and seed of a credentials file: the lines after two lines of dashes that begin a section.
fn parts(text: &str) -> Option<(&str, &str)> {
    let mut lines = text.lines().map(str::trim);
    let mut section = || {
        lines.find(|line| line.starts_with("-----BEGIN "))?;
        lines.find(|line| !line.is_empty())
    };
    Some((section()?, section()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(server: &str, creds: &str) -> Credentials {
        let mut config = config::load(None, []).unwrap().bus;
        (config.server, config.creds) = (server.to_owned(), creds.to_owned());
        Credentials::of(&config)
    }

    #[test]
    fn a_file_goes_before_a_url_and_a_url_before_nothing() {
        let user = |user: &str, password: Option<&str>| Credentials::Url { user: user.to_owned(), password: password.map(str::to_owned) };
        assert_eq!(of("nats://a:4222", ""), Credentials::None);
        assert_eq!(of("nats://me:secret@a:4222,nats://b:4222", ""), user("me", Some("secret")));
        assert_eq!(of("nats://token@a:4222", ""), user("token", None));
        assert_eq!(of("nats://me:secret@a:4222", "/x/y.creds"), Credentials::File("/x/y.creds".into()));
    }

    #[test]
    fn a_file_is_read_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("worker.creds");
        let credentials = Credentials::File(path.clone());
        assert!(credentials.answer(b"nonce").is_err());
        for jwt in ["one", "two"] {
            let key = KeyPair::new_user();
            let seed = key.seed().unwrap();
            let text = format!(
                "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n*** IMPORTANT ***\n\n\
                 -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
            );
            std::fs::write(&path, text).unwrap();
            let answer = credentials.answer(b"nonce").unwrap();
            assert_eq!(answer.jwt.as_deref(), Some(jwt));
            assert!(key.verify(b"nonce", &answer.signature.unwrap()).is_ok());
        }
    }
}
