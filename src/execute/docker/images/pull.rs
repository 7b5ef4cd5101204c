//! One pull: the request, and its answer line by line.
//!
//! Not by bollard's `create_image`, for three reasons. It writes credentials in the alphabet of base64 that the engine does not read
//! (it wants the one for URLs), so that a `~`, `?` or umlaut at the wrong place of a password makes the pull an anonymous one
//! without a word; it logs every line; and its connections are shared, so that a pull which nobody wants any more could not be ended
//! by closing its connection, which is how the engine is told to stop.

use std::pin::{Pin, pin};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as _, Incoming};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;
use tokio_util::task::AbortOnDropHandle;

use super::super::Credentials;
use super::verdict::{Fault, Kind};
use crate::task::ImageRef;

/// Longest line, and longest answer that is no stream of lines, bytes.
const LONGEST: usize = 256 * 1024;

/// A line of the engine's report.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Line {
    /// The layer, or the tag.
    pub id: String,
    /// `Downloading`, `Pull complete`, …
    pub status: String,
    /// Bytes of it.
    #[serde(rename = "progressDetail")]
    pub bytes: Part,
    /// It failed.
    pub error: String,
    #[serde(rename = "errorDetail")]
    detail: Detail,
}

/// How far something is.
#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(default)]
pub(super) struct Part {
    /// Done.
    pub current: Option<u64>,
    /// In all.
    pub total: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Detail {
    message: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Refusal {
    message: String,
    /// Podman's word for it.
    cause: String,
}

/// Pulls it to the end. `told` is given every line and says whether something moved; without that for `inactivity` it is given up.
/// Dropped, the engine stops pulling.
pub(super) async fn pull(
    host: &str,
    image: &ImageRef,
    credentials: Option<&Credentials>,
    inactivity: Duration,
    mut told: impl FnMut(&Line) -> bool,
) -> Result<(), Fault> {
    let silent = || Fault { kind: Kind::Transient, message: format!("no progress for {} s", inactivity.as_secs_f64()) };
    let mut idle = pin!(tokio::time::sleep(inactivity));
    let request = request(host, image, credentials);
    let (answer, _connection) = tokio::select! {
        answer = request => answer?,
        () = &mut idle => return Err(silent()),
    };
    let status = answer.status().as_u16();
    let mut body = answer.into_body();
    let mut rest = Vec::new();
    loop {
        let frame = tokio::select! {
            frame = frame(&mut body) => frame,
            () = &mut idle => return Err(silent()),
        };
        let Some(bytes) = frame else { break };
        let bytes = bytes.map_err(|error| unanswered(host, &error.to_string()))?;
        rest.extend_from_slice(&bytes);
        if status == 200 && lines(&mut rest, &mut told)? {
            idle.as_mut().reset(tokio::time::Instant::now() + inactivity);
        }
        if rest.len() > LONGEST {
            return Err(Fault { kind: Kind::Transient, message: format!("the engine wrote a line longer than {LONGEST} bytes") });
        }
    }
    if status != 200 {
        return Err(refused(status, &rest));
    }
    rest.push(b'\n');
    lines(&mut rest, &mut told).map(|_| ())
}

/// Takes the whole lines out of `rest`; whether something moved.
fn lines(rest: &mut Vec<u8>, told: &mut impl FnMut(&Line) -> bool) -> Result<bool, Fault> {
    let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') else { return Ok(false) };
    let whole: Vec<u8> = rest.drain(..=end).collect();
    let mut moved = false;
    for text in whole.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|text| !text.is_empty()) {
        // What is no object is no error either: the stream's end, and the engine's answer afterwards, decide.
        let Ok(line) = serde_json::from_slice::<Line>(text) else { continue };
        let error = if line.detail.message.is_empty() { &line.error } else { &line.detail.message };
        if !error.is_empty() {
            return Err(Fault::judged(None, error));
        }
        moved |= told(&line);
    }
    Ok(moved)
}

fn refused(status: u16, body: &[u8]) -> Fault {
    let refusal: Refusal = serde_json::from_slice(body).unwrap_or_default();
    let text = [refusal.message, refusal.cause].into_iter().find(|text| !text.is_empty());
    Fault::judged(Some(status), &text.unwrap_or_else(|| String::from_utf8_lossy(&body[..body.len().min(500)]).into_owned()))
}

fn unanswered(host: &str, error: &str) -> Fault {
    Fault { kind: Kind::Engine, message: format!("the container engine at {host} does not answer: pull: {error}") }
}

/// Sends it on a connection of its own, which lives as long as the handle.
async fn request(
    host: &str,
    image: &ImageRef,
    credentials: Option<&Credentials>,
) -> Result<(hyper::Response<Incoming>, AbortOnDropHandle<()>), Fault> {
    let failed = |error: &dyn std::fmt::Display| unanswered(host, &error.to_string());
    let stream = UnixStream::connect(host.trim_start_matches("unix://")).await.map_err(|e| failed(&e))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(&e))?;
    let connection = AbortOnDropHandle::new(tokio::spawn(async move {
        // Its errors are the answer's too.
        let _ = connection.await;
    }));
    // Nothing in a parsed name needs to be escaped. A digest goes where a tag would.
    let part = image.digest.as_deref().or(image.tag.as_deref()).unwrap_or("latest");
    let uri = format!("/images/create?fromImage={}&tag={part}", image.name());
    let mut request = hyper::Request::post(uri).header("Host", "docker").header("Content-Length", "0");
    if let Some(credentials) = credentials {
        let mut value = hyper::header::HeaderValue::from_str(&credentials.header(&image.registry)).map_err(|e| failed(&e))?;
        value.set_sensitive(true);
        request = request.header("X-Registry-Auth", value);
    }
    let request = request.body(String::new()).map_err(|e| failed(&e))?;
    let answer = sender.send_request(request).await.map_err(|e| failed(&e))?;
    Ok((answer, connection))
}

/// The next bytes; none at the end. Cancel safe.
async fn frame(body: &mut Incoming) -> Option<Result<Bytes, hyper::Error>> {
    let frame = std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await?;
    Some(frame.map(|frame| frame.into_data().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_however_they_are_cut() {
        let text = "{\"status\":\"Pulling\",\"id\":\"a\"}\r\n{\"status\":\"x\",\"progressDetail\":{\"current\":1,\"total\":2}}\r\n";
        for cut in 0..text.len() {
            let (mut seen, mut rest) = (Vec::new(), Vec::new());
            for part in [&text[..cut], &text[cut..]] {
                rest.extend_from_slice(part.as_bytes());
                lines(&mut rest, &mut |line| {
                    seen.push((line.status.clone(), line.bytes.current));
                    true
                })
                .unwrap();
            }
            assert_eq!(seen, [("Pulling".to_owned(), None), ("x".to_owned(), Some(1))], "cut at {cut}");
        }
    }

    #[test]
    fn an_error_in_the_stream_ends_it() {
        let mut text = b"{\"errorDetail\":{\"message\":\"unexpected EOF\"},\"error\":\"unexpected EOF\"}\n".to_vec();
        let fault = lines(&mut text, &mut |_| true).unwrap_err();
        assert_eq!((fault.kind, fault.message.as_str()), (Kind::Transient, "unexpected EOF"));
        let fault = refused(404, br#"{"message":"manifest unknown"}"#);
        assert_eq!((fault.kind, fault.message.as_str()), (Kind::NotFound, "manifest unknown"));
    }
}
