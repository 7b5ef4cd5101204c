//! Names of container images, and patterns that allow them.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The registry that names without one mean.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Its older name, which engines take for the same.
const OLD_DEFAULT_REGISTRY: &str = "index.docker.io";
/// Its namespace of names without one.
const DEFAULT_NAMESPACE: &str = "library/";

/// An image as it is asked for: `[registry/]repository[:tag][@sha256:…]`, with what Docker would fill in filled in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageRef {
    /// `docker.io`, `registry.example:5000`.
    pub registry: String,
    /// `library/redis`, `acme/render`.
    pub repository: String,
    /// `latest` unless named; none where only a digest is given.
    pub tag: Option<String>,
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: Option<String>,
}

/// A text that names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} names no image: {why}; write [registry/]name[:tag][@sha256:…], in lower case")]
pub struct InvalidImage {
    text: String,
    why: &'static str,
}

impl ImageRef {
    /// Registry and repository, without tag and digest.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
}

impl FromStr for ImageRef {
    type Err = InvalidImage;

    fn from_str(text: &str) -> Result<Self, InvalidImage> {
        let invalid = |why| InvalidImage { text: text.to_owned(), why };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) if is_digest(digest) => (rest, Some(digest.to_owned())),
            Some(_) => return Err(invalid("a digest is sha256: and 64 hexadecimal digits")),
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            // A colon before a slash is that of a port.
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            Some(_) | None => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(invalid("a tag has 1 to 128 letters, digits and . _ -, and begins with none of . -"));
        }
        let (registry, repository) = place(name);
        if !is_registry(&registry) {
            return Err(invalid("the part before the first / is no host name with or without a port"));
        }
        if repository.is_empty() || repository.len() > 255 || !repository.split('/').all(is_component) {
            return Err(invalid("a name has lower-case letters and digits, with single . _ - between them, and / between parts"));
        }
        let tag = tag.map(str::to_owned).or_else(|| digest.is_none().then(|| "latest".to_owned()));
        Ok(Self { registry, repository, tag, digest })
    }
}

/// Registry and repository that a name stands for.
fn place(name: &str) -> (String, String) {
    match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => {
            let first = if first == OLD_DEFAULT_REGISTRY { DEFAULT_REGISTRY } else { first };
            let library = if first == DEFAULT_REGISTRY && !rest.contains('/') { DEFAULT_NAMESPACE } else { "" };
            (first.to_owned(), format!("{library}{rest}"))
        }
        Some(_) => (DEFAULT_REGISTRY.to_owned(), name.to_owned()),
        None => (DEFAULT_REGISTRY.to_owned(), format!("{DEFAULT_NAMESPACE}{name}")),
    }
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

fn is_tag(tag: &str) -> bool {
    let of_tag = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    (1..=128).contains(&tag.len()) && tag.bytes().all(of_tag) && !tag.starts_with(['.', '-'])
}

fn is_registry(registry: &str) -> bool {
    let (host, port) = registry.split_once(':').map_or((registry, None), |(host, port)| (host, Some(port)));
    let good_host = !host.is_empty() && !host.contains("..") && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'));
    // A number may have a sign where it is parsed.
    let good_port = |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok();
    good_host && port.is_none_or(good_port)
}

fn is_component(part: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    part.bytes().all(inner) && edge(part.bytes().next()) && edge(part.bytes().last()) && !part.contains("..")
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Images that may be used: a name as an assignment writes it, in which `*` stands for any text. Without a tag every tag and
/// digest of the name is meant, with a digest only that one. With a tag alone no digest is: what has a digest is run by
/// it, whatever the tag beside it says.
///
/// `*` does not reach from the registry into the path: who may name a registry of his own could write any path there. `*` alone
/// means every image, `*/name` that name at the end of any path of any registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct ImagePattern {
    text: String,
    #[serde(skip)]
    name: NamePattern,
    #[serde(skip)]
    tag: Option<String>,
    #[serde(skip)]
    digest: Option<String>,
}

/// Names that may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
enum NamePattern {
    /// In any registry: registry and repository as one text.
    Anywhere(String),
    /// Each for itself.
    At { registry: String, repository: String },
}

impl Default for NamePattern {
    /// Of what is only described, never read: no image at all.
    fn default() -> Self {
        Self::Anywhere(String::new())
    }
}

impl NamePattern {
    fn of(name: &str) -> Self {
        let first = name.split('/').next().unwrap_or(name);
        if !first.is_empty() && first.bytes().all(|b| b == b'*') {
            return Self::Anywhere(name.to_owned());
        }
        let (registry, repository) = place(name);
        Self::At { registry, repository }
    }

    fn allows(&self, image: &ImageRef) -> bool {
        match self {
            Self::Anywhere(name) => matches(name, &image.name()),
            Self::At { registry, repository } => matches(registry, &image.registry) && matches(repository, &image.repository),
        }
    }
}

impl ImagePattern {
    /// Whether it allows `image`.
    #[must_use]
    pub fn allows(&self, image: &ImageRef) -> bool {
        let build = match (&self.digest, &self.tag, &image.digest, &image.tag) {
            // With a digest the tag says nothing.
            (Some(wanted), _, given, _) => given.as_ref() == Some(wanted),
            (None, None, _, _) => true,
            // Nobody knows which tag that is, or was.
            (None, Some(_), Some(_), _) => false,
            (None, Some(wanted), None, given) => given.as_ref().is_some_and(|given| matches(wanted, given)),
        };
        build && self.name.allows(image)
    }
}

impl FromStr for ImagePattern {
    type Err = InvalidImage;

    fn from_str(text: &str) -> Result<Self, InvalidImage> {
        let invalid = |why| InvalidImage { text: text.to_owned(), why };
        if text.is_empty() || text.bytes().any(|b| b.is_ascii_whitespace() || b.is_ascii_control()) {
            return Err(invalid("it is empty or has white space"));
        }
        let (rest, digest) = text.split_once('@').map_or((text, None), |(rest, digest)| (rest, Some(digest.to_owned())));
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag.to_owned())),
            Some(_) | None => (rest, None),
        };
        if digest.as_deref().is_some_and(|d| !is_digest(d)) {
            return Err(invalid("a digest is sha256: and 64 hexadecimal digits, without *"));
        }
        Ok(Self { text: text.to_owned(), name: NamePattern::of(name), tag, digest })
    }
}

impl TryFrom<String> for ImagePattern {
    type Error = InvalidImage;

    fn try_from(text: String) -> Result<Self, InvalidImage> {
        text.parse()
    }
}

impl From<ImagePattern> for String {
    fn from(pattern: ImagePattern) -> Self {
        pattern.text
    }
}

impl fmt::Display for ImagePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whether `text` is `pattern` with some text for each `*`.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(text) = text.strip_prefix(head) else { return false };
    // Only the last star needs more than the first place that fits.
    match rest.rsplit_once('*') {
        None => text.ends_with(rest),
        Some((middle, tail)) => {
            let mut left = text;
            for part in middle.split('*') {
                let Some(at) = left.find(part) else { return false };
                left = &left[at + part.len()..];
            }
            left.ends_with(tail)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn image(text: &str) -> ImageRef {
        text.parse().unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn names_are_filled_in_as_docker_does() {
        for (text, full) in [
            ("redis", "docker.io/library/redis:latest"),
            ("redis:7", "docker.io/library/redis:7"),
            ("docker.io/redis", "docker.io/library/redis:latest"),
            ("index.docker.io/redis", "docker.io/library/redis:latest"),
            ("index.docker.io/acme/render:1", "docker.io/acme/render:1"),
            ("acme/render:1.2-b_3", "docker.io/acme/render:1.2-b_3"),
            ("localhost/x", "localhost/x:latest"),
            ("127.0.0.1:5000/a/b/c:v1", "127.0.0.1:5000/a/b/c:v1"),
            ("registry.example/a", "registry.example/a:latest"),
        ] {
            assert_eq!(image(text).to_string(), full);
            assert_eq!(image(full), image(text));
        }
        assert_eq!(image(&format!("a@{DIGEST}")).to_string(), format!("docker.io/library/a@{DIGEST}"));
        assert_eq!(image(&format!("a:1@{DIGEST}")).to_string(), format!("docker.io/library/a:1@{DIGEST}"));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            "",
            "A",
            "a b",
            "a/",
            "/a",
            "a..b/c",
            "-a",
            "a:",
            "a:-x",
            "a@sha256:12",
            "a@md5:1",
            "../../x",
            "a?b",
            "x.y:99999/a",
            "a//b",
            "x.y:+80/a",
        ] {
            assert!(text.parse::<ImageRef>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn patterns_allow_what_they_say_and_no_more() {
        let digested = format!("redis@{DIGEST}");
        for (pattern, allowed, refused) in [
            ("*", vec!["a", "x.example/b:1"], vec![]),
            ("redis", vec!["redis", "redis:7", "docker.io/library/redis"], vec!["redisx", "acme/redis", "x.example/redis"]),
            ("redis:7*", vec!["redis:7", "redis:7.2"], vec!["redis", "redis:6"]),
            (
                "registry.example/acme/*",
                vec!["registry.example/acme/a", "registry.example/acme/a/b:1"],
                vec!["registry.example/acme", "registry.example/other/a", "x.example/registry.example/acme/a"],
            ),
            (
                "*/ci-*-runner",
                vec!["x.example/ci-a-b-runner", "x.example/a/ci-b-runner", "ci-a-runner"],
                vec!["x.example/ci-runner", "x.example/ci-a-runner-b"],
            ),
            (
                "*.corp.example/app",
                vec!["r.corp.example/app", "a.r.corp.example/app:1"],
                vec!["evil.example/x.corp.example/app", "corp.example/app", "r.corp.example/x/app"],
            ),
            (
                "registry.*/acme/*",
                vec!["registry.example/acme/a", "registry.example:5000/acme/a/b"],
                vec!["registry.evil.example/x/acme/y", "x.example/registry.y/acme/z"],
            ),
            ("*redis", vec!["redis", "my-redis:1"], vec!["x.example/redis", "acme/redis"]),
            ("index.docker.io/acme/*", vec!["acme/a", "docker.io/acme/a"], vec!["x.example/acme/a"]),
            (digested.as_str(), vec![digested.as_str()], vec!["redis", "redis:latest"]),
        ] {
            let allows: ImagePattern = pattern.parse().unwrap();
            for text in allowed {
                assert!(allows.allows(&image(text)), "{pattern} should allow {text}");
            }
            for text in refused {
                assert!(!allows.allows(&image(text)), "{pattern} should not allow {text}");
            }
        }
    }

    /// The digest alone decides what runs; a tag may stand beside any.
    #[test]
    fn a_tag_beside_a_digest_allows_nothing() {
        let (pinned, bare) = (image(&format!("redis:7@{DIGEST}")), image(&format!("redis@{DIGEST}")));
        for (pattern, allowed) in [
            ("redis:7".to_owned(), false),
            ("redis:*".to_owned(), false),
            ("*:7".to_owned(), false),
            ("redis".to_owned(), true),
            ("*".to_owned(), true),
            (format!("redis@{DIGEST}"), true),
            (format!("redis:7@{DIGEST}"), true),
            (format!("redis:7@{}", DIGEST.replace('0', "1")), false),
        ] {
            let pattern: ImagePattern = pattern.parse().unwrap();
            assert_eq!((pattern.allows(&pinned), pattern.allows(&bare)), (allowed, allowed), "{pattern}");
        }
    }
}
