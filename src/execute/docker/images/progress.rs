//! How far a pull is, from what the engine says of each layer.

use std::collections::HashMap;

use super::pull::Line;
use crate::task::ImageRef;
use crate::task::event::Progress;

/// Most layers that are counted; images have 127 at most.
const MOST_LAYERS: usize = 512;

/// How far a pull is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PullProgress {
    /// Percentage, 0 to 100; it does not go back.
    pub pct: f64,
    /// Text for people.
    pub message: String,
}

impl PullProgress {
    /// The stage that events tell of it under.
    pub const STAGE: &str = "PULLING";
}

impl From<PullProgress> for Progress {
    fn from(progress: PullProgress) -> Self {
        Self { stage: Some(PullProgress::STAGE.to_owned()), pct: Some(progress.pct), message: Some(progress.message) }
    }
}

/// What a line meant.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// There is something to tell.
    Progress(PullProgress),
    /// Something was done.
    Moved,
    /// Nothing was: the engine waits for the registry.
    Waiting,
}

/// The layers of one image.
#[derive(Debug)]
pub(super) struct Layers {
    image: String,
    layers: HashMap<String, Layer>,
    pct: f64,
}

/// One layer: half of the way is its download, the other half its unpacking.
#[derive(Debug, Default, Clone, Copy)]
struct Layer {
    bytes: u64,
    total: u64,
    /// 0 to 1.
    way: f64,
}

impl Layers {
    pub(super) fn new(image: &ImageRef) -> Self {
        Self { image: image.to_string(), layers: HashMap::new(), pct: 0.0 }
    }

    /// Takes a line in.
    pub(super) fn take(&mut self, line: &Line) -> Step {
        if line.status.starts_with("Retrying in") {
            // The engine counts down, once a second.
            return Step::Waiting;
        }
        let part = match (line.bytes.current, line.bytes.total) {
            (Some(current), Some(total)) if total > 0 => (current as f64 / total as f64).clamp(0.0, 1.0),
            _ => 0.0,
        };
        let way = match line.status.as_str() {
            "Pulling fs layer" | "Waiting" => 0.0,
            "Downloading" => part / 2.0,
            "Verifying Checksum" | "Download complete" => 0.5,
            "Extracting" => 0.5 + part / 2.0,
            "Pull complete" | "Already exists" => 1.0,
            _ => return Step::Moved,
        };
        if line.id.is_empty() || !self.layers.contains_key(&line.id) && self.layers.len() >= MOST_LAYERS {
            return Step::Moved;
        }
        let layer = self.layers.entry(line.id.clone()).or_default();
        layer.way = way;
        if line.status == "Downloading" {
            (layer.bytes, layer.total) = (line.bytes.current.unwrap_or_default(), line.bytes.total.unwrap_or_default());
        } else if way >= 0.5 {
            layer.bytes = layer.total;
        }
        Step::Progress(self.now())
    }

    fn now(&mut self) -> PullProgress {
        let (bytes, total) = self.layers.values().fold((0, 0), |(bytes, total), layer| (bytes + layer.bytes, total + layer.total));
        // A layer whose size is not known yet weighs as much as a small one.
        let weight = |layer: &Layer| layer.total.max(1 << 20) as f64;
        let all: f64 = self.layers.values().map(weight).sum();
        let way: f64 = self.layers.values().map(|layer| weight(layer) * layer.way).sum();
        // A layer that becomes known makes the rest longer; what was said stays said. The end is not this one's to say.
        self.pct = self.pct.max((way / all * 1000.0).floor() / 10.0).min(99.0);
        let done = self.layers.values().filter(|layer| layer.way >= 1.0).count();
        let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let message =
            format!("{}: {done} of {} layers, {:.1} of {:.1} MiB", self.image, self.layers.len(), mebibytes(bytes), mebibytes(total));
        PullProgress { pct: self.pct, message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(id: &str, status: &str, current: u64, total: u64) -> Line {
        let text = serde_json::json!({"id": id, "status": status, "progressDetail": {"current": current, "total": total}});
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn a_pull_goes_on_and_never_back() {
        let mut layers = Layers::new(&"a".parse().unwrap());
        let mut last = 0.0;
        for (id, status, current, total) in [
            ("x", "Pulling fs layer", 0, 0),
            ("x", "Downloading", 5 << 20, 10 << 20),
            ("y", "Downloading", 1, 100 << 20),
            ("x", "Download complete", 0, 0),
            ("y", "Downloading", 100 << 20, 100 << 20),
            ("y", "Verifying Checksum", 0, 0),
            ("y", "Extracting", 50 << 20, 100 << 20),
            ("x", "Pull complete", 0, 0),
            ("y", "Pull complete", 0, 0),
        ] {
            let Step::Progress(now) = layers.take(&line(id, status, current, total)) else { panic!("{status} says nothing") };
            assert!(now.pct >= last && now.pct < 100.0, "{now:?} after {last}");
            last = now.pct;
        }
        assert_eq!(last, 99.0, "the end is said by the image being there");
        let Step::Progress(now) = layers.take(&line("z", "Already exists", 0, 0)) else { panic!("nothing") };
        assert_eq!(now.message, "docker.io/library/a:latest: 3 of 3 layers, 110.0 of 110.0 MiB");
    }

    #[test]
    fn waiting_is_no_progress() {
        let mut layers = Layers::new(&"a".parse().unwrap());
        assert_eq!(layers.take(&line("x", "Retrying in 5 seconds", 0, 0)), Step::Waiting);
        assert_eq!(layers.take(&line("1", "Pulling from library/a", 0, 0)), Step::Moved);
    }
}
