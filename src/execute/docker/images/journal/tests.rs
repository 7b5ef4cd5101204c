use super::*;

fn image(id: char, digest: char) -> ImageInspect {
    let repeat = |c: char| format!("sha256:{}", c.to_string().repeat(64));
    ImageInspect {
        id: Some(repeat(id)),
        repo_digests: Some(vec![format!("r.example/a@{}", repeat(digest)), format!("other.example/a@{}", repeat('9'))]),
        ..Default::default()
    }
}

#[tokio::test]
async fn what_was_pulled_is_known_and_what_was_there_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::new(dir.path(), "unix:///x");
    let reference: ImageRef = "r.example/a:1".parse().unwrap();
    let (old, new) = (image('a', '1'), image('b', '2'));
    assert!(journal.begin(&reference, old.id.as_deref()).await.done(&journal, &reference, &old).await.is_none());
    assert!(journal.entries().is_empty(), "the operator's own");
    let hold = journal.begin(&reference, old.id.as_deref()).await.done(&journal, &reference, &new).await.unwrap();
    let [entry] = &journal.entries()[..] else { panic!("one entry") };
    assert_eq!(Some(&entry.id), new.id.as_ref());
    assert!(entry.unused().is_none(), "in use");
    drop(hold);
    let unused = entry.unused().unwrap();
    assert_eq!(unused.references, ["r.example/a:1".to_owned(), format!("r.example/a@sha256:{}", "2".repeat(64))]);
    drop(unused);
    assert!(journal.abandoned().is_empty());
}

#[tokio::test]
async fn who_comes_too_late_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::new(dir.path(), "unix:///x");
    let (reference, found): (ImageRef, _) = ("r.example/a:1".parse().unwrap(), image('b', '2'));
    let id = found.id.clone().unwrap();
    assert!(matches!(journal.hold(&id).await, Ok(None)), "nobody's");
    drop(journal.pulled(&reference, &found).await.unwrap());
    assert!(matches!(journal.hold(&id).await, Ok(Some(_))));
    let unused = journal.entries()[0].unused().unwrap();
    let (late, asked) = (journal.clone(), id.clone());
    let waiting = tokio::spawn(async move { late.hold(&asked).await.is_err() });
    unused.removed();
    assert!(waiting.await.unwrap(), "it waited for the removal and saw it");
    assert!(journal.entries().is_empty());
    drop(journal.pulled(&reference, &found).await.unwrap());
    assert_eq!(journal.entries().len(), 1, "pulled again");
}

/// As a full disk, or the end of a machine, leaves it.
#[tokio::test]
async fn half_a_line_spoils_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::new(dir.path(), "unix:///x");
    let (reference, found): (ImageRef, _) = ("r.example/a:1".parse().unwrap(), image('b', '2'));
    let record = journal.record(found.id.as_deref().unwrap());
    std::fs::create_dir_all(&journal.dir).unwrap();
    std::fs::write(&record, "r.example/b:1\nr.exam").unwrap();
    drop(journal.pulled(&reference, &found).await.unwrap());
    drop(journal.pulled(&reference, &found).await.unwrap());
    let own = format!("r.example/a@sha256:{}", "2".repeat(64));
    assert_eq!(journal.entries()[0].unused().unwrap().references, ["r.example/b:1", "r.example/a:1", &own]);

    // Of a pull the second line is missing: nothing is known of what was there before, so nothing is taken over.
    let pending = journal.dir.join("pending");
    std::fs::create_dir_all(&pending).unwrap();
    let note = pending.join(sha256_hex(address(&reference).as_bytes()));
    std::fs::write(&note, "r.example/a:1\nsha256:ab").unwrap();
    assert!(journal.abandoned().is_empty());
    assert!(!note.exists());
    std::fs::write(&note, "r.example/a:1\nsha256:ab").unwrap();
    assert_eq!(journal.begin(&reference, Some("sha256:abcd")).await.before.as_deref(), Some("sha256:abcd"));
}

#[tokio::test]
async fn a_pull_whose_worker_died_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::new(dir.path(), "unix:///x");
    let reference: ImageRef = "r.example/a:1".parse().unwrap();
    let pending = journal.begin(&reference, Some("sha256:00")).await;
    assert!(journal.abandoned().is_empty(), "its worker lives");
    drop(pending);
    {
        let [abandoned] = &journal.abandoned()[..] else { panic!("one") };
        assert_eq!((&abandoned.reference, abandoned.before.as_deref()), (&reference, Some("sha256:00")));
    }
    let again = journal.begin(&reference, Some("sha256:11")).await;
    assert_eq!(again.before.as_deref(), Some("sha256:00"), "what it is now, the dead one may have pulled");
    again.fail().await;
    assert!(journal.abandoned().is_empty());
}
