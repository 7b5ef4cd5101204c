//! The table of `docs/guarantees.md`, written from the cases.

use windlass::crash::Point;

use super::cases::{case, in_supervisor};

const BEGIN: &str = "<!-- crash points: written by `make test-faults` -->\n";
const END: &str = "<!-- end of crash points -->\n";

fn table() -> String {
    let mut text = String::from(
        "| what had happened when it died | what the next worker finds and does | attempts | outcome | test `crash_points::` |\n|---|---|---|---|---|\n",
    );
    for point in Point::ALL {
        let case = case(*point);
        assert!(in_supervisor(*point) == point.happened().starts_with("supervisor: "), "{point:?}: who dies?");
        let with_docker = if super::TESTED_WITH_DOCKER.contains(point) { format!(", `docker::{}`", point.name()) } else { String::new() };
        let tests = format!("`{}`{with_docker}", point.name());
        text += &format!("| {} | {} | {} | `{}` | {tests} |\n", point.happened(), case.next, case.attempts, case.outcome);
    }
    text
}

/// Compares, or with `WINDLASS_WRITE_DOCS` rewrites.
#[test]
fn the_table_in_the_guarantees_is_this_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/guarantees.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("the table's begin mark");
    let (found, after) = rest.split_once(END).expect("the table's end mark");
    let table = table();
    if std::env::var_os("WINDLASS_WRITE_DOCS").is_some() {
        std::fs::write(path, format!("{before}{BEGIN}\n{table}{END}{after}")).unwrap();
    } else {
        assert_eq!(found.trim(), table.trim(), "docs/guarantees.md is not what the cases say: make test-faults writes it");
    }
}
