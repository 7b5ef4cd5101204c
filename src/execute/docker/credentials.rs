//! Credentials of registries: from Docker's `config.json`, or from a secret of the task. They are in no log, event or error.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::task::ImageRef;

/// Largest file that is read, bytes.
const LARGEST: u64 = 1 << 20;

/// The name that Docker's own files have for its hub.
const HUB: &str = "https://index.docker.io/v1/";

/// What a registry is told.
#[derive(Clone)]
pub struct Credentials {
    user: String,
    /// Password, or an identity token.
    secret: SecretString,
    is_token: bool,
}

/// Why there are none, where there should be. Never has a value in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// `docker.credentials`
    #[error("docker.credentials: {path} {why}")]
    File {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// A secret of a task.
    #[error("the secret for the registry {0}")]
    Secret(&'static str),
}

/// Docker's file; what else is in it is Docker's alone.
#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
}

/// One registry's, and the JSON that a secret may be.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

/// As the engine wants it.
#[derive(Serialize)]
struct Header<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    username: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    password: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    identitytoken: &'a str,
    serveraddress: &'a str,
}

/// Those that the file at `path` has for `image`; none for an empty path, and for a registry that is not in it. Of several for one
/// registry those of the longest path count, as containers-auth.json(5) has it. Read anew each time, since such files are rotated.
///
/// # Errors
/// When the file cannot be read or understood.
pub(super) fn configured(path: &str, image: &ImageRef) -> Result<Option<Credentials>, CredentialsError> {
    if path.is_empty() {
        return Ok(None);
    }
    let failed = |why: String| CredentialsError::File { path: path.to_owned(), why };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| failed(format!("cannot be opened: {error}")))?;
    file.take(LARGEST).read_to_string(&mut text).map_err(|error| failed(format!("cannot be read: {error}")))?;
    let file: ConfigFile = serde_json::from_str(&text).map_err(|error| {
        // serde's own words may quote what is in the file.
        failed(format!("is not what docker login writes, at line {} column {}", error.line(), error.column()))
    })?;
    let own = |key: &str| key == image.registry || (key == HUB && image.registry == "docker.io");
    let for_it = file.auths.into_iter().filter(|(key, _)| is_for(&place(key), &image.name()));
    // Of two keys for one place the one that `docker login` writes.
    let best = for_it.max_by_key(|(key, _)| (place(key).len(), own(key)));
    let Some((name, auth)) = best else { return Ok(None) };
    // What `docker login` leaves for a registry whose credentials are in a store of the desktop.
    if auth.auth.is_empty() && auth.username.is_empty() && auth.identitytoken.is_empty() {
        return Err(failed(format!("has nothing for {name}: credential helpers are not supported; write its \"auth\" there")));
    }
    auth.credentials().map(Some).map_err(|why| failed(format!("has no credentials for {name}: {why}")))
}

/// Registry and path that a key is for. `https://index.docker.io/v1/` is written for the hub, `https://host` and `https://host/v2/`
/// by some tools. What else the hub's own tools keep there (`…/v1/access-token`) is below a path that no image has.
fn place(key: &str) -> String {
    let bare = ["https://", "http://"].iter().find_map(|scheme| key.strip_prefix(scheme));
    let is_url = bare.is_some() || key.ends_with('/');
    let text = bare.unwrap_or(key).trim_end_matches('/');
    let (host, path) = text.split_once('/').unwrap_or((text, ""));
    let host = if matches!(host, "index.docker.io" | "registry-1.docker.io") { "docker.io" } else { host };
    if path.is_empty() || (is_url && matches!(path, "v1" | "v2")) { host.to_owned() } else { format!("{host}/{path}") }
}

/// Whether the image of that name is at that place, or below it.
fn is_for(place: &str, name: &str) -> bool {
    name.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Auth {
    fn credentials(self) -> Result<Credentials, &'static str> {
        let (mut user, mut password) = (self.username, self.password);
        if !self.auth.is_empty() {
            let pair = STANDARD.decode(self.auth.trim()).map_err(|_| "\"auth\" is no base64")?;
            let pair = String::from_utf8(pair).map_err(|_| "\"auth\" is no text")?;
            let (name, secret) = pair.split_once(':').ok_or("\"auth\" is no user:password")?;
            // Some tools end it with NUL bytes.
            (user, password) = (name.to_owned(), secret.trim_matches('\0').to_owned());
        }
        if !self.identitytoken.is_empty() {
            return Ok(Credentials { user, secret: self.identitytoken.into(), is_token: true });
        }
        if user.is_empty() || password.is_empty() {
            return Err("user or password is empty");
        }
        Ok(Credentials { user, secret: password.into(), is_token: false })
    }
}

impl Credentials {
    /// From the value of a secret: `user:password`, or JSON with `username` and `password`, or with `identitytoken`.
    ///
    /// # Errors
    /// When it is neither.
    pub fn from_secret(value: &[u8]) -> Result<Self, CredentialsError> {
        let neither = "is neither user:password nor JSON with username and password, or identitytoken";
        let text = std::str::from_utf8(value).map_err(|_| CredentialsError::Secret("is no text"))?.trim();
        if text.starts_with('{') {
            let auth: Auth = serde_json::from_str(text).map_err(|_| CredentialsError::Secret(neither))?;
            return auth.credentials().map_err(CredentialsError::Secret);
        }
        let (user, password) = text.split_once(':').ok_or(CredentialsError::Secret(neither))?;
        let auth = Auth { username: user.to_owned(), password: password.to_owned(), ..Auth::default() };
        auth.credentials().map_err(CredentialsError::Secret)
    }

    /// The value of `X-Registry-Auth`.
    pub(super) fn header(&self, registry: &str) -> String {
        let secret = self.secret.expose_secret();
        let (password, identitytoken) = if self.is_token { ("", secret) } else { (secret, "") };
        let username = if self.is_token { "" } else { self.user.as_str() };
        let serveraddress = if registry == "docker.io" { HUB } else { registry };
        let header = Header { username, password, identitytoken, serveraddress };
        URL_SAFE.encode(serde_json::to_vec(&header).unwrap_or_default())
    }

    /// Tells one from another without keeping it.
    pub(super) fn fingerprint(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for part in [self.user.as_str(), self.secret.expose_secret()] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.finalize().into()
    }

    /// Takes them out of a text of somebody else.
    pub(super) fn redact(&self, text: &mut String) {
        if text.contains(self.secret.expose_secret()) {
            *text = text.replace(self.secret.expose_secret(), "***");
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, image: &str) -> Result<Option<Credentials>, CredentialsError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        configured(path.to_str().unwrap(), &image.parse().unwrap())
    }

    fn decoded(credentials: &Credentials, registry: &str) -> serde_json::Value {
        serde_json::from_slice(&URL_SAFE.decode(credentials.header(registry)).unwrap()).unwrap()
    }

    #[test]
    fn each_registry_gets_its_own() {
        let text = serde_json::json!({"auths": {
            "https://index.docker.io/v1/": {"auth": STANDARD.encode("hub:secret:with:colons")},
            "r.example:5000": {"username": "u", "password": "p"},
            "https://token.example": {"auth": STANDARD.encode("00000000-0000:"), "identitytoken": "t"},
        }, "credHelpers": {"x": "y"}})
        .to_string();
        let hub = read(&text, "redis").unwrap().unwrap();
        let wanted =
            serde_json::json!({"username": "hub", "password": "secret:with:colons", "serveraddress": "https://index.docker.io/v1/"});
        assert_eq!(decoded(&hub, "docker.io"), wanted);
        let own = read(&text, "r.example:5000/a/b").unwrap().unwrap();
        assert_eq!(decoded(&own, "r.example:5000")["password"], "p");
        let token = read(&text, "token.example/a").unwrap().unwrap();
        assert_eq!(decoded(&token, "token.example"), serde_json::json!({"identitytoken": "t", "serveraddress": "token.example"}));
        assert!(read(&text, "r.example/a").unwrap().is_none(), "another port is another registry");
        assert!(configured("", &"a".parse().unwrap()).unwrap().is_none());
    }

    /// Whatever the order in the file is: many rounds, since a map without one would often be right by chance.
    #[test]
    fn the_nearest_path_counts() {
        let keys = [
            HUB,
            "https://index.docker.io/v1/access-token",
            "https://index.docker.io/v1/refresh-token",
            "quay.example",
            "https://quay.example",
            "quay.example/org1",
            "quay.example/org2",
            "quay.example/org2/deep",
            "https://old.example/v2/",
            "two.example/org",
        ];
        let auths: serde_json::Map<_, _> =
            keys.iter().map(|key| ((*key).to_owned(), serde_json::json!({"username": key, "password": "p"}))).collect();
        let text = serde_json::json!({"auths": auths}).to_string();
        for (image, key) in [
            ("redis", Some(HUB)),
            ("acme/app", Some(HUB)),
            ("quay.example/org1/a", Some("quay.example/org1")),
            ("quay.example/org2/a", Some("quay.example/org2")),
            ("quay.example/org2/deep/a:1", Some("quay.example/org2/deep")),
            ("quay.example/org2/deeper", Some("quay.example/org2")),
            ("quay.example/org3/a", Some("quay.example")),
            ("old.example/a", Some("https://old.example/v2/")),
            ("two.example/other/a", None),
        ] {
            for _ in 0..8 {
                let found = read(&text, image).unwrap();
                let user = found.map(|found| decoded(&found, "r")["username"].as_str().unwrap().to_owned());
                assert_eq!(user.as_deref(), key, "{image}");
            }
        }
    }

    #[test]
    fn what_is_wrong_with_the_file_is_said_without_its_secrets() {
        let lone = serde_json::json!({"auths": {"r.example": {"auth": STANDARD.encode("hunter2")}}}).to_string();
        for (text, said) in [
            ("{\"auths\": {\"r.example\": {\"auth\": 5, \"password\": \"hunter2\"}}}", "is not what docker login writes, at line 1"),
            ("{\"auths\": {\"r.example\": {}}, \"credsStore\": \"desktop\"}", "credential helpers are not supported"),
            (lone.as_str(), "\"auth\" is no user:password"),
            ("{\"auths\": {\"r.example\": {\"auth\": \"hunter2!\"}}}", "\"auth\" is no base64"),
        ] {
            let error = read(text, "r.example/a").unwrap_err().to_string();
            assert!(error.contains(said) && error.starts_with("docker.credentials: /") && !error.contains("hunter2"), "{error}");
        }
        assert!(configured("/nonexistent", &"a".parse().unwrap()).unwrap_err().to_string().contains("cannot be opened"));
    }

    #[test]
    fn a_secret_is_a_pair_or_json() {
        for (value, user, password) in
            [("u:p:q", "u", "p:q"), ("{\"username\": \"u\", \"password\": \"p\"}", "u", "p"), ("u:p\n", "u", "p")]
        {
            let header = decoded(&Credentials::from_secret(value.as_bytes()).unwrap(), "r");
            assert_eq!((header["username"].as_str(), header["password"].as_str()), (Some(user), Some(password)));
        }
        for value in ["hunter2", "{\"username\": \"u\"}", "{", ":p", "u:"] {
            let error = Credentials::from_secret(value.as_bytes()).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    /// Engines read the alphabet for URLs and take anything else for no credentials at all.
    #[test]
    fn every_password_reaches_the_engine() {
        for password in ["a~", "ab~~~???", "äöü>>>", "\u{7f}\u{7f}"] {
            let credentials = Credentials::from_secret(format!("user:{password}").as_bytes()).unwrap();
            assert_eq!(decoded(&credentials, "r")["password"], password);
        }
    }

    #[test]
    fn nothing_prints_them() {
        let credentials = Credentials::from_secret(b"user:hunter2").unwrap();
        assert_eq!(format!("{credentials:?}"), "Credentials(***)");
        let mut text = "Get https://user:hunter2@r.example: no".to_owned();
        credentials.redact(&mut text);
        assert_eq!(text, "Get https://user:***@r.example: no");
        assert_ne!(credentials.fingerprint(), Credentials::from_secret(b"use:rhunter2").unwrap().fingerprint());
    }
}
