//! What a pull that failed means. Engines say it in words: the status is 500 for most of it.

use super::{ImageError, failed};
use crate::task::{ImageRef, Reason};

/// A pull that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub kind: Kind,
    /// The engine's words.
    pub message: String,
}

/// What is behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The registry does not have it.
    NotFound,
    /// The registry does not give it.
    Denied,
    /// It is not for machines like this one.
    Platform,
    /// The engine's disk is full.
    DiskFull,
    /// It will not work the next time either.
    Permanent,
    /// It may work the next time.
    Transient,
    /// The engine is away.
    Engine,
}

/// In lower case, in this order: a limit of the rate is often called a denial too.
const WORDS: &[(&str, Kind)] = &[
    ("no space left on device", Kind::DiskFull),
    ("disk quota exceeded", Kind::DiskFull),
    ("toomanyrequests", Kind::Transient),
    ("too many requests", Kind::Transient),
    ("no matching manifest for", Kind::Platform),
    ("manifest unknown", Kind::NotFound),
    ("name unknown", Kind::NotFound),
    ("repository name not known", Kind::NotFound),
    ("access denied", Kind::Denied),
    ("access to the resource is denied", Kind::Denied),
    ("no basic auth credentials", Kind::Denied),
    ("unauthorized", Kind::Denied),
    ("authentication required", Kind::Denied),
    ("incorrect username or password", Kind::Denied),
    ("403 forbidden", Kind::Denied),
    ("invalid reference format", Kind::Permanent),
    ("unsupported manifest", Kind::Permanent),
    ("unsupported media type", Kind::Permanent),
    ("server gave http response to https client", Kind::Permanent),
    ("x509:", Kind::Permanent),
];

impl Fault {
    /// From the engine's words, and its status where it is that of the whole answer.
    pub(super) fn judged(status: Option<u16>, message: &str) -> Self {
        let lower = message.to_lowercase();
        let by_words = WORDS.iter().find(|(words, _)| lower.contains(words)).map(|(_, kind)| *kind);
        let by_status = match status {
            Some(404) => Kind::NotFound,
            Some(401 | 403) => Kind::Denied,
            Some(408 | 429) | None => Kind::Transient,
            Some(400..=499) => Kind::Permanent,
            Some(_) => Kind::Transient,
        };
        Self { kind: by_words.unwrap_or(by_status), message: message.to_owned() }
    }

    /// Whether the pull is tried again.
    pub(super) fn is_transient(&self) -> bool {
        matches!(self.kind, Kind::Transient | Kind::DiskFull)
    }

    /// As the task's end tells it.
    pub(super) fn told(self, image: &ImageRef, tries: u32, with_credentials: bool) -> ImageError {
        let (message, registry) = (self.message, &image.registry);
        let not_found = |hint: String| ImageError { reason: Reason::ImageNotFound, error: format!("{image}: {message}"), hint };
        match self.kind {
            Kind::NotFound => not_found(format!("correct the name, the tag or the digest, or push the image to {registry}")),
            Kind::Denied if with_credentials => not_found(format!(
                "it does not exist, or the credentials for {registry} do not open it: correct the name or the credentials"
            )),
            Kind::Denied => not_found(format!(
                "it does not exist, or {registry} wants credentials: correct the name, or give some by docker.credentials or execution.registry_secret"
            )),
            Kind::Platform => not_found("build the image for the platform of the workers".to_owned()),
            Kind::DiskFull => failed(image, &message, "the disk that holds the engine's images is full: free space there"),
            Kind::Permanent => failed(image, &message, "look at the registry and at the engine's settings for it"),
            Kind::Transient => {
                let tried = if tries == 1 { "once".to_owned() } else { format!("{tries} times") };
                failed(
                    image,
                    &format!("tried {tried}, at last: {message}"),
                    "look at the registry and the network; the task is tried again",
                )
            }
            Kind::Engine => ImageError {
                reason: Reason::DockerUnavailable,
                error: message,
                hint: "look at the container engine of the worker; the task is tried again".to_owned(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_engines_say_is_told_apart() {
        for (status, message, kind) in [
            (Some(404), "manifest for r.example/a:1 not found: manifest unknown: manifest unknown", Kind::NotFound),
            (
                Some(404),
                "pull access denied for a, repository does not exist or may require 'docker login': denied: requested access to the resource is denied",
                Kind::Denied,
            ),
            (Some(500), "Head \"https://r.example/v2/a/manifests/1\": no basic auth credentials", Kind::Denied),
            (Some(500), "unauthorized: authentication required", Kind::Denied),
            (Some(500), "Get \"http://127.0.0.1:1/v2/\": dial tcp 127.0.0.1:1: connect: connection refused", Kind::Transient),
            (Some(500), "received unexpected HTTP status: 503 Service Unavailable", Kind::Transient),
            (Some(500), "toomanyrequests: You have reached your pull rate limit. access denied", Kind::Transient),
            (Some(500), "net/http: TLS handshake timeout", Kind::Transient),
            (Some(404), "no matching manifest for linux/riscv64 in the manifest list entries", Kind::Platform),
            (Some(400), "invalid reference format", Kind::Permanent),
            (None, "unexpected EOF", Kind::Transient),
            (None, "filesystem layer verification failed for digest sha256:00", Kind::Transient),
            (None, "failed to register layer: write /x: no space left on device", Kind::DiskFull),
        ] {
            assert_eq!(Fault::judged(status, message).kind, kind, "{message}");
        }
    }

    #[test]
    fn every_kind_says_what_to_do() {
        let image: ImageRef = "r.example/a:1".parse().unwrap();
        let kinds = [
            (Kind::NotFound, Reason::ImageNotFound),
            (Kind::Denied, Reason::ImageNotFound),
            (Kind::Platform, Reason::ImageNotFound),
            (Kind::DiskFull, Reason::ImagePullFailed),
            (Kind::Permanent, Reason::ImagePullFailed),
            (Kind::Transient, Reason::ImagePullFailed),
            (Kind::Engine, Reason::DockerUnavailable),
        ];
        for (kind, reason) in kinds {
            let told = Fault { kind, message: "words".to_owned() }.told(&image, 2, false);
            assert_eq!(told.reason, reason);
            assert!(told.error.contains("words") && !told.hint.is_empty(), "{told:?}");
        }
    }
}
