//! An error with everything that caused it, in one line.

use std::error::Error;
use std::fmt;

/// Displays an error and its sources, joined by `: `.
#[derive(Debug, Clone, Copy)]
pub struct Causes<'a>(&'a (dyn Error + 'static));

/// `error` and its sources. Our own errors do not repeat their source in their text; foreign ones may, and are not said twice.
#[must_use]
pub fn causes<'a>(error: &'a (dyn Error + 'static)) -> Causes<'a> {
    Causes(error)
}

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            if !said.contains(&text) {
                write!(f, ": {text}")?;
                said = text;
            }
            source = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Fault;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot do it")]
    struct Outer(#[source] Fault);

    #[derive(Debug, thiserror::Error)]
    #[error("again: {0}")]
    struct Repeats(#[source] std::io::Error);

    fn fault() -> Fault {
        let source = std::io::Error::from_raw_os_error(5);
        Fault::Spool { path: "/spool".into(), source: std::sync::Arc::new(source) }
    }

    #[test]
    fn every_cause_is_said_once() {
        assert_eq!(causes(&fault()).to_string(), "output spool /spool: Input/output error (os error 5)");
        assert_eq!(causes(&Outer(fault())).to_string(), "cannot do it: output spool /spool: Input/output error (os error 5)");
        let repeats = Repeats(std::io::Error::other("broken"));
        assert_eq!(causes(&repeats).to_string(), "again: broken");
    }
}
