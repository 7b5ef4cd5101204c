//! The secrets of long-lived services, read where `up` runs.

use super::StackError;
use crate::config::services::Service;
use crate::task::secret::SecretRef;

/// Names and values.
pub(super) fn read(name: &str, service: &Service) -> Result<Vec<(String, String)>, StackError> {
    let one = |(variable, reference): (&String, &String)| {
        let failed = |why: String| StackError::Secret { service: name.to_owned(), reference: reference.clone(), why };
        let value = match reference.parse::<SecretRef>().map_err(failed)? {
            SecretRef::Env(from) => std::env::var(&from).map_err(|_| failed("no such variable, or it is no text".to_owned()))?,
            SecretRef::File(path) => std::fs::read_to_string(&path).map_err(|error| failed(error.to_string()))?,
            SecretRef::Kv { .. } => return Err(failed("services take env:NAME and file:/path".to_owned())),
        };
        let value = value.strip_suffix('\n').unwrap_or(&value).to_owned();
        if value.contains('\0') {
            return Err(failed("it holds a NUL byte, which no variable can".to_owned()));
        }
        Ok((variable.clone(), value))
    };
    service.secrets.iter().map(one).collect()
}
