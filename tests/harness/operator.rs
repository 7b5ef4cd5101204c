//! A NATS operator of the test's own: accounts and users by signed tokens that expire.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};

use super::Server;

/// Signs users into the one account of its server.
pub struct Operator {
    account: KeyPair,
}

fn token(issuer: &KeyPair, subject: &KeyPair, expires: Option<Duration>, nats: Value) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let mut claims =
        json!({"jti": "test", "iat": now.as_secs(), "iss": issuer.public_key(), "sub": subject.public_key(), "name": "test", "nats": nats});
    if let Some(expires) = expires {
        claims["exp"] = (now + expires).as_secs().into();
    }
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&json!({"typ": "JWT", "alg": "ed25519-nkey"})), part(&claims));
    let signature = issuer.sign(signed.as_bytes()).expect("it has a seed");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn account_claims(jetstream: i64) -> Value {
    let limits = json!({"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
        "mem_storage": jetstream, "disk_storage": jetstream, "streams": jetstream, "consumer": jetstream});
    json!({"type": "account", "version": 2, "limits": limits, "default_permissions": {"pub": {}, "sub": {}}})
}

impl Operator {
    /// A server that takes only users of this operator; `None` when there is no nats-server.
    pub fn start() -> Option<(Self, Arc<Server>)> {
        let (operator, system, account) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_account());
        let itself = token(&operator, &operator, None, json!({"type": "operator", "version": 2}));
        let system_token = token(&operator, &system, None, account_claims(0));
        let account_token = token(&operator, &account, None, account_claims(-1));
        let server = Server::with_config(|port, dir| {
            format!(
                "listen: 127.0.0.1:{port}\njetstream {{ store_dir: \"{}\" }}\noperator: {itself}\nsystem_account: {}\n\
                 resolver: MEMORY\nresolver_preload: {{\n{}: {system_token}\n{}: {account_token}\n}}\n",
                dir.join("data").display(),
                system.public_key(),
                system.public_key(),
                account.public_key()
            )
        })?;
        Some((Self { account }, server))
    }

    /// Writes credentials that are good for so long, in place of those that are there.
    pub fn write_credentials(&self, path: &Path, good_for: Duration) {
        let user = KeyPair::new_user();
        let claims = json!({"type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1});
        let token = token(&self.account, &user, Some(good_for), claims);
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            user.seed().expect("it has one")
        );
        let new = path.with_extension("new");
        std::fs::write(&new, text).expect("credentials");
        std::fs::rename(&new, path).expect("credentials");
    }
}
