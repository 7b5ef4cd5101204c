//! The long-lived services of an environment: brought up, looked at, taken down.
//!
//! They belong to an operator, not to a worker: their labels have the role `stack` and no instance, so no worker's end and no
//! sweep touches them. Each label `windlass.config` holds the digest of what a container was made from: [`Stack::up`] leaves
//! alone what is as it should be, and makes anew what is not. They are trusted more than tasks: the engine's default
//! capabilities, so that images which begin as root and become another user work, but no new privileges.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bollard::models::{ContainerInspectResponse, ContainerStateStatusEnum, VolumeCreateRequest};
use bollard::query_parameters::{
    CreateContainerOptions, InspectContainerOptions, ListContainersOptionsBuilder, ListNetworksOptions, ListVolumesOptions,
    RemoveVolumeOptions, StartContainerOptions, StopContainerOptionsBuilder,
};
use serde::Serialize;

mod body;
mod secrets;

use super::engine::{Engine, EngineError};
use super::services::probe::{self, Look};
use super::services::{last_words, remove_container};
use super::{ImageError, Images, Ready, network};
use crate::config::services::{Service, Services, VolumeSource};
use crate::task::Reason;

/// Time that a service gets to end by itself before it is killed.
const GRACE_S: i32 = 10;

/// Why the services are not as asked.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// The engine.
    #[error("{what}: {error}")]
    Engine {
        /// Which service, what was to be done.
        what: String,
        /// The engine's words.
        error: EngineError,
    },
    /// It runs, and is not ready.
    #[error("service {service} is not ready: {why}")]
    NotReady {
        /// Which.
        service: String,
        /// What the last look said, and what it wrote.
        why: String,
    },
    /// It has no image.
    #[error("service {service}: {error}")]
    Image {
        /// Whose.
        service: String,
        /// Why not.
        error: ImageError,
    },
    /// A secret that cannot be read.
    #[error("service {service}: secret {reference}: {why}")]
    Secret {
        /// Whose.
        service: String,
        /// Where it should be.
        reference: String,
        /// Why it is not to be had.
        why: String,
    },
}

/// How one service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It runs, and its check says yes, where it has one.
    Ready,
    /// It runs, and its check says no.
    NotReady,
    /// Its container does not run.
    Stopped,
    /// It has no container.
    Missing,
    /// It runs, but not as the file says now: `up` makes it anew.
    Outdated,
    /// It runs, but is in the file no longer: `down` removes it.
    Unconfigured,
}

/// A service and how it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// Its name.
    pub service: String,
    /// How it is.
    pub state: State,
    /// Its image, as asked for.
    pub image: String,
    /// Id of its container.
    pub container_id: Option<String>,
    /// Ports of the machine.
    pub ports: Vec<String>,
    /// What there is to say about it.
    pub detail: Option<String>,
}

/// What [`Stack::down`] removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// Services whose containers were removed.
    pub services: Vec<String>,
    /// Volumes.
    pub volumes: Vec<String>,
}

/// The services of one environment at an engine.
#[derive(Debug)]
pub struct Stack {
    engine: Engine,
    images: Images,
    environment: String,
}

impl Stack {
    /// Of the environment of that name.
    #[must_use]
    pub fn new(engine: Engine, images: Images, environment: &str) -> Self {
        Self { engine, images, environment: environment.to_owned() }
    }

    /// Starts what does not run, makes anew what is not as it should be, and waits until each is ready. `tell` hears what is done.
    ///
    /// # Errors
    /// At the first service that cannot be started or does not become ready; those before it run.
    pub async fn up(&self, wanted: &Services, tell: &(dyn Fn(&str) + Sync)) -> Result<(), StackError> {
        self.network().await?;
        let there = self.containers().await?;
        for (name, service) in &wanted.services {
            let secrets = secrets::read(name, service)?;
            // Held until the container is there, which holds it from then on.
            let image = self.image(name, service, tell).await?;
            let body = body::body(self, name, service, &image.id, &secrets);
            let container = match there.get(name) {
                Some(found) if body::is_same(found, &body) => {
                    let id = found.id.clone().unwrap_or_default();
                    if !runs(found) {
                        tell(&format!("starting {name}"));
                        self.start(name, &id).await?;
                    }
                    id
                }
                found => {
                    if let Some(id) = found.and_then(|found| found.id.as_deref()) {
                        tell(&format!("making {name} anew: it is not as configured"));
                        self.remove(name, id).await?;
                    } else {
                        tell(&format!("starting {name}"));
                    }
                    self.volumes(name, service).await?;
                    self.create(name, body).await?
                }
            };
            self.until_ready(name, service, &container).await?;
        }
        Ok(())
    }

    /// How each service is, those that should not be there at the end.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub async fn status(&self, wanted: &Services) -> Result<Vec<Standing>, StackError> {
        let mut there = self.containers().await?;
        let mut all = Vec::new();
        for (name, service) in &wanted.services {
            let found = there.remove(name);
            let (state, detail) = match &found {
                None => (State::Missing, None),
                Some(found) => self.look_at(name, service, found).await?,
            };
            all.push(Standing {
                service: name.clone(),
                state,
                image: service.image.clone(),
                container_id: found.and_then(|found| found.id),
                ports: service.ports.iter().map(ToString::to_string).collect(),
                detail,
            });
        }
        for (name, found) in there {
            let image = found.config.and_then(|config| config.image).unwrap_or_default();
            let detail = Some("it is in the file no longer".to_owned());
            all.push(Standing { service: name, state: State::Unconfigured, image, container_id: found.id, ports: vec![], detail });
        }
        Ok(all)
    }

    /// Removes every container of the environment and its network, and on request its volumes with what is in them.
    ///
    /// # Errors
    /// When the engine does not do it.
    pub async fn down(&self, with_volumes: bool, tell: &(dyn Fn(&str) + Sync)) -> Result<Removed, StackError> {
        let mut removed = Removed::default();
        for (name, found) in self.containers().await? {
            tell(&format!("removing {name}"));
            self.remove(&name, found.id.as_deref().unwrap_or_default()).await?;
            removed.services.push(name);
        }
        let ours = self.ours();
        let options = ListNetworksOptions { filters: Some(ours.clone()) };
        let networks = self.ask("list networks", self.engine.api().list_networks(Some(options))).await?;
        for id in networks.into_iter().filter_map(|network| network.id) {
            network::remove(&self.engine, &id).await.map_err(|error| self.failed("its network", error))?;
        }
        if with_volumes {
            let options = ListVolumesOptions { filters: Some(ours) };
            let volumes = self.ask("list volumes", self.engine.api().list_volumes(Some(options))).await?;
            for volume in volumes.volumes.unwrap_or_default() {
                self.ask("remove volume", self.engine.api().remove_volume(&volume.name, None::<RemoveVolumeOptions>)).await?;
                removed.volumes.push(volume.name);
            }
        }
        Ok(removed)
    }

    /// Name of the network, and before a dot of everything else. No environment has a dot, so that none has another's names: with `-`
    /// there `b-data` of `a` would be `data` of `a-b`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("windlass-{}", self.environment)
    }

    fn failed(&self, what: &str, error: EngineError) -> StackError {
        StackError::Engine { what: format!("environment {}: {what}", self.environment), error }
    }

    async fn ask<T>(&self, what: &'static str, request: impl Future<Output = Result<T, bollard::errors::Error>>) -> Result<T, StackError> {
        self.engine.ask(what, request).await.map_err(|error| self.failed(what, error))
    }

    fn labels(&self) -> HashMap<String, String> {
        let pairs = [("windlass.role", "stack"), ("windlass.environment", &self.environment)];
        pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    /// A filter for what has these labels.
    fn ours(&self) -> HashMap<String, Vec<String>> {
        let labels = self.labels().into_iter().map(|(key, value)| format!("{key}={value}")).collect();
        HashMap::from([("label".to_owned(), labels)])
    }

    /// The containers that are there, by service.
    async fn containers(&self) -> Result<BTreeMap<String, ContainerInspectResponse>, StackError> {
        let options = ListContainersOptionsBuilder::default().all(true).filters(&self.ours()).build();
        let listed = self.ask("list", self.engine.api().list_containers(Some(options))).await?;
        let mut found = BTreeMap::new();
        for (id, labels) in listed.into_iter().filter_map(|one| Some((one.id?, one.labels?))) {
            let Some(service) = labels.get("windlass.service") else { continue };
            let inspected = self.engine.ask("inspect", self.engine.api().inspect_container(&id, None::<InspectContainerOptions>)).await;
            match inspected {
                Ok(container) => drop(found.insert(service.clone(), container)),
                // Removed since it was listed.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(self.failed("inspect", error)),
            }
        }
        Ok(found)
    }

    async fn image(&self, name: &str, service: &Service, tell: &(dyn Fn(&str) + Sync)) -> Result<Ready, StackError> {
        let failed = |error| StackError::Image { service: name.to_owned(), error };
        let image = service.image().map_err(|error| {
            failed(ImageError { reason: Reason::ImageRefused, error: error.to_string(), hint: "correct services.<name>.image".to_owned() })
        })?;
        let told = std::sync::Once::new();
        let progress = |_| told.call_once(|| tell(&format!("pulling {image}")));
        self.images.ensure(&self.engine, &image, service.pull, None, &progress).await.map_err(failed)
    }

    async fn network(&self) -> Result<(), StackError> {
        let options = ListNetworksOptions { filters: Some(self.ours()) };
        if !self.ask("list networks", self.engine.api().list_networks(Some(options))).await?.is_empty() {
            return Ok(());
        }
        let made = network::create(&self.engine, &self.name(), self.labels(), true).await;
        made.map(drop).map_err(|error| self.failed("its network", error))
    }

    async fn volumes(&self, name: &str, service: &Service) -> Result<(), StackError> {
        for volume in &service.volumes {
            let VolumeSource::Named(own) = &volume.source else { continue };
            let request =
                VolumeCreateRequest { name: Some(self.volume(own)), labels: Some(self.labels()), ..VolumeCreateRequest::default() };
            let made = self.engine.ask("create volume", self.engine.api().create_volume(request)).await;
            made.map_err(|error| StackError::Engine { what: format!("service {name}: volume {own}"), error })?;
        }
        Ok(())
    }

    fn volume(&self, own: &str) -> String {
        format!("{}.{own}", self.name())
    }

    async fn create(&self, name: &str, body: bollard::models::ContainerCreateBody) -> Result<String, StackError> {
        let failed = |error| StackError::Engine { what: format!("service {name} cannot be made"), error };
        let options = CreateContainerOptions { name: Some(format!("{}.{name}", self.name())), ..CreateContainerOptions::default() };
        let made = self.engine.ask("create", self.engine.api().create_container(Some(options), body)).await.map_err(failed)?;
        if let Err(error) = self.start(name, &made.id).await {
            // It would be in the way of the next one, made from a corrected file.
            let _ = remove_container(&self.engine, &made.id).await;
            return Err(error);
        }
        Ok(made.id)
    }

    async fn start(&self, name: &str, id: &str) -> Result<(), StackError> {
        let started = self.engine.ask("start", self.engine.api().start_container(id, None::<StartContainerOptions>)).await;
        match started {
            Err(error) if !error.is_conflict() => Err(StackError::Engine { what: format!("service {name} cannot be started"), error }),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// With the chance to end by itself: databases want to write.
    async fn remove(&self, name: &str, id: &str) -> Result<(), StackError> {
        let options = StopContainerOptionsBuilder::default().t(GRACE_S).build();
        // What could not be stopped is killed by its removal.
        let _ = self.engine.ask("stop", self.engine.api().stop_container(id, Some(options))).await;
        let removed = remove_container(&self.engine, id).await;
        removed.map_err(|error| StackError::Engine { what: format!("service {name} cannot be removed"), error })
    }

    async fn until_ready(&self, name: &str, service: &Service, id: &str) -> Result<(), StackError> {
        let Some(check) = &service.health else { return Ok(()) };
        let mut last = String::new();
        for _ in 0..check.retries {
            match probe::look(&self.engine, id, check).await {
                Ok(Look::Ready) => return Ok(()),
                Ok(Look::NotReady(why)) => last = why,
                Err(error) => return Err(StackError::Engine { what: format!("service {name}"), error }),
            }
            tokio::time::sleep(Duration::from_secs_f64(check.interval_s)).await;
        }
        let words = last_words::sentence(&last_words::of(&self.engine, id).await);
        Err(StackError::NotReady { service: name.to_owned(), why: format!("{last}; {words}") })
    }

    async fn look_at(
        &self,
        name: &str,
        service: &Service,
        found: &ContainerInspectResponse,
    ) -> Result<(State, Option<String>), StackError> {
        if !runs(found) {
            let code = found.state.as_ref().and_then(|state| state.exit_code).unwrap_or_default();
            return Ok((State::Stopped, Some(format!("its container ended with {code}"))));
        }
        if !body::is_of(found, service) {
            return Ok((State::Outdated, Some("the file says otherwise now; `windlass services up` makes it anew".to_owned())));
        }
        let (Some(check), Some(id)) = (&service.health, &found.id) else { return Ok((State::Ready, None)) };
        match probe::look(&self.engine, id, check).await {
            Ok(Look::Ready) => Ok((State::Ready, None)),
            Ok(Look::NotReady(why)) => Ok((State::NotReady, Some(why))),
            Err(error) => Err(StackError::Engine { what: format!("service {name}"), error }),
        }
    }
}

fn runs(container: &ContainerInspectResponse) -> bool {
    let status = container.state.as_ref().and_then(|state| state.status);
    matches!(status, Some(ContainerStateStatusEnum::RUNNING))
}
