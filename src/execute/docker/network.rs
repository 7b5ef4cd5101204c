//! Networks that Windlass makes: private to a task and its services, or to an environment's long-lived ones.

use std::collections::HashMap;
use std::time::Duration;

use bollard::models::NetworkCreateRequest;

use super::engine::{Engine, EngineError};

/// No container of such a network, nor the machine itself, is reached through its gateway: it has none.
const WITHOUT_GATEWAY: &str = "com.docker.network.bridge.inhibit_ipv4";
/// Tries to remove a network whose last container is just leaving it, and the time between two.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(200);

/// Makes one; its id. Without a way out its containers reach each other and nothing else.
pub(super) async fn create(engine: &Engine, name: &str, labels: HashMap<String, String>, way_out: bool) -> Result<String, EngineError> {
    let docker = engine.facts().product == "Docker";
    // The engine would give the machine an address in it, by which a container reaches every service of the machine.
    let options = (!way_out && docker).then(|| HashMap::from([(WITHOUT_GATEWAY.to_owned(), "true".to_owned())]));
    let request = NetworkCreateRequest {
        name: name.to_owned(),
        driver: Some("bridge".to_owned()),
        internal: Some(!way_out),
        labels: Some(labels),
        options,
        ..NetworkCreateRequest::default()
    };
    let made = engine.ask("create network", engine.api().create_network(request)).await?;
    Ok(made.id)
}

/// Removes one by id or name; done when it is not there.
pub(super) async fn remove(engine: &Engine, id: &str) -> Result<(), EngineError> {
    let mut tries = 1;
    loop {
        match remove_found(engine, id).await {
            Ok(_) => return Ok(()),
            // 403: a container is in it still.
            Err(error) if tries < TRIES && (error.is_transient() || is_in_use(&error)) => tries += 1,
            Err(error) => return Err(error),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// One try; whether it was there.
pub(super) async fn remove_found(engine: &Engine, id: &str) -> Result<bool, EngineError> {
    match engine.ask("remove network", engine.api().remove_network(id)).await {
        Err(error) if error.is_not_found() => Ok(false),
        answer => answer.map(|()| true),
    }
}

fn is_in_use(error: &EngineError) -> bool {
    matches!(error, EngineError::Refused { status: 403 | 409, .. })
}
