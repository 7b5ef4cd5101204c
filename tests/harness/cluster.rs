//! Three nats-servers that are one cluster, on this machine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use serde_json::Value;

use super::proxy::Proxy;
use super::server::{Server, free_port};
use super::{Orchestrator, PATIENCE};

/// The nodes. A worker is given the URL of one, or of a faulty link before it; they do not tell clients of each other.
pub struct Cluster {
    /// `n1`, `n2`, `n3`.
    pub nodes: Vec<Arc<Server>>,
    /// The link between `n3` and the others, the only one.
    pub third: Proxy,
}

impl Cluster {
    /// Starts one; `None` when there is no nats-server.
    pub async fn start() -> Option<Self> {
        let routes: Vec<u16> = (0..3).map(|_| free_port()).collect();
        let third = Proxy::of_bytes(routes[2]);
        let url = |port: u16| format!("nats://127.0.0.1:{port}");
        let mut nodes = Vec::new();
        for (n, route) in routes.iter().enumerate() {
            // The first two call each other and the third, which calls nobody (it has to name somebody): nodes tell each other
            // where they are, and that is nowhere.
            let calls = if n < 2 { format!("{}, {}", url(routes[1 - n]), url(third.port())) } else { url(1) };
            let node = Server::with_config(|port, dir| {
                format!(
                    "server_name: n{}\nlisten: 127.0.0.1:{port}\n\
                     jetstream {{ store_dir: \"{}\"\n max_mem: 64MB\n max_file: 1TB }}\n\
                     cluster {{ name: c\n listen: 127.0.0.1:{route}\n no_advertise: true\n advertise: \"127.0.0.1:1\"\n routes: [{calls}] }}\n",
                    n + 1,
                    dir.join("data").display(),
                )
            })?;
            nodes.push(node);
        }
        let cluster = Self { nodes, third };
        cluster.ready().await;
        Some(cluster)
    }

    /// Waits until it has a leader, every node knows it, and it knows every node.
    async fn ready(&self) {
        let all = jetstream::stream::Config { name: "ALL".into(), num_replicas: 3, ..Default::default() };
        for node in &self.nodes {
            let client = async_nats::connect(node.url()).await.expect("the node answers");
            let js = jetstream::new(client);
            let deadline = Instant::now() + PATIENCE;
            while js.query_account().await.is_err() {
                assert!(Instant::now() < deadline, "the cluster has no leader");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            while js.create_stream(all.clone()).await.is_err() {
                assert!(Instant::now() < deadline, "the leader does not know all nodes");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    /// The node of that name.
    pub fn node(&self, name: &str) -> &Arc<Server> {
        let number: usize = name.trim_start_matches('n').parse().expect("n1, n2 or n3");
        &self.nodes[number - 1]
    }

    /// Name of the node that leads a stream; waits for one other than `not`.
    pub async fn leader(&self, bus: &Orchestrator, stream: &str, not: Option<&str>) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let info: Result<Value, _> = bus.js.request(format!("STREAM.INFO.{stream}"), &()).await;
            let leader = info.ok().and_then(|info| info["cluster"]["leader"].as_str().map(str::to_owned));
            match leader.filter(|leader| !leader.is_empty() && Some(leader.as_str()) != not) {
                Some(leader) => return leader,
                None => assert!(Instant::now() < deadline, "{stream} has no leader other than {not:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Asks the leader of a stream to step down, and waits for another.
    pub async fn step_down(&self, bus: &Orchestrator, stream: &str) {
        let leader = self.leader(bus, stream, None).await;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer: Result<Value, _> = bus.js.request(format!("STREAM.LEADER.STEPDOWN.{stream}"), &()).await;
            if answer.as_ref().is_ok_and(|answer| answer["success"] == true) {
                break;
            }
            assert!(Instant::now() < deadline, "{stream}: {answer:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.leader(bus, stream, Some(&leader)).await;
    }
}
