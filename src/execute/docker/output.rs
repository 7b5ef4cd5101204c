//! A container's output and input: frames of the engine into the pipes that the recorder reads.

use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bollard::container::LogOutput;
use futures_util::{Stream, StreamExt as _};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::net::unix::pipe::Sender;

/// What the engine sends of both streams.
pub(super) type Frames = Pin<Box<dyn Stream<Item = Result<LogOutput, bollard::errors::Error>> + Send>>;
/// What it passes on to the program.
pub(super) type Input = Pin<Box<dyn AsyncWrite + Send>>;

/// The two pipes, with a count of what went through.
#[derive(Debug)]
pub(super) struct Pipes {
    stdout: Sender,
    stderr: Sender,
    copied: Arc<AtomicU64>,
}

impl Pipes {
    /// Into these write ends.
    pub(super) fn new(stdout: OwnedFd, stderr: OwnedFd) -> std::io::Result<Self> {
        Ok(Self { stdout: Sender::from_owned_fd(stdout)?, stderr: Sender::from_owned_fd(stderr)?, copied: Arc::default() })
    }

    /// Bytes so far.
    pub(super) fn copied(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.copied)
    }

    /// Copies until the engine ends the stream. One frame is held at a time: a reader that is slow holds the program back,
    /// not this process's memory.
    ///
    /// # Errors
    /// When the stream broke before its end.
    pub(super) async fn copy(mut self, mut frames: Frames) -> Result<(), String> {
        while let Some(frame) = frames.next().await {
            let (pipe, bytes) = match frame.map_err(|error| error.to_string())? {
                LogOutput::StdOut { message } => (&mut self.stdout, message),
                LogOutput::StdErr { message } => (&mut self.stderr, message),
                LogOutput::StdIn { .. } | LogOutput::Console { .. } => return Err("what came is no frame of a stream".to_owned()),
            };
            // Without a reader it is an attempt that nobody tells of any more: the program is to end, not to hang.
            let _ = pipe.write_all(&bytes).await;
            self.copied.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Gives the program its standard input, and then its end. A program that does not read it, or ends before, is its own affair.
pub(super) async fn feed(mut input: Input, text: String) {
    let _ = input.write_all(text.as_bytes()).await;
    let _ = input.shutdown().await;
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn frame(stderr: bool, text: &'static str) -> Result<LogOutput, bollard::errors::Error> {
        let message = text.into();
        Ok(if stderr { LogOutput::StdErr { message } } else { LogOutput::StdOut { message } })
    }

    async fn copied(frames: Vec<Result<LogOutput, bollard::errors::Error>>) -> (Result<(), String>, String, String) {
        let ((mut out, out_write), (mut err, err_write)) = (std::io::pipe().unwrap(), std::io::pipe().unwrap());
        let pipes = Pipes::new(out_write.into(), err_write.into()).unwrap();
        let result = pipes.copy(Box::pin(futures_util::stream::iter(frames))).await;
        let (mut stdout, mut stderr) = (String::new(), String::new());
        out.read_to_string(&mut stdout).unwrap();
        err.read_to_string(&mut stderr).unwrap();
        (result, stdout, stderr)
    }

    #[tokio::test]
    async fn each_stream_goes_into_its_pipe_in_order() {
        let (result, stdout, stderr) = copied(vec![frame(false, "a"), frame(true, "x"), frame(false, "b"), frame(true, "y")]).await;
        assert_eq!((result, stdout.as_str(), stderr.as_str()), (Ok(()), "ab", "xy"));
    }

    #[tokio::test]
    async fn a_stream_that_breaks_is_not_taken_for_one_that_ended() {
        let broken = Err(bollard::errors::Error::IOError { err: std::io::ErrorKind::ConnectionReset.into() });
        let (result, stdout, _) = copied(vec![frame(false, "a"), broken]).await;
        assert_eq!(stdout, "a");
        assert!(result.is_err());
        let (result, ..) = copied(vec![Ok(LogOutput::Console { message: "raw".into() })]).await;
        assert!(result.is_err(), "no frame");
    }
}
