use super::*;

/// Archive as Portcullis packs it: its files in order, with their names.
fn archive(tag: &str, change: impl Fn(usize, &mut tar::Header)) -> Vec<u8> {
    let (config, layer) =
        (format!("{}.json", "a".repeat(64)), format!("{}/layer.tar", "b".repeat(64)));
    let list = serde_json::json!([{"Config": config, "RepoTags": [tag], "Layers": [layer]}]);
    let list = list.to_string();
    let mut builder = tar::Builder::new(Vec::new());
    for (at, (name, content)) in
        [(config.as_str(), "{}"), ("manifest.json", &list), (&layer, &"x".repeat(1000))]
            .into_iter()
            .enumerate()
    {
        let mut header = tar::Header::new_gnu();
        header.set_path(name).expect("a name");
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_entry_type(tar::EntryType::Regular);
        change(at, &mut header);
        header.set_cksum();
        builder.append(&header, content.as_bytes()).expect("a file");
    }
    builder.into_inner().expect("an archive")
}

fn read(bytes: &[u8], piece: usize) -> Result<(), Refusal> {
    let mut reader = Reader::new(1 << 20);
    for piece in bytes.chunks(piece) {
        reader.take(piece)?;
    }
    reader.end()
}

const TAG: &str = "portcullis.invalid/packed/notes:0123";

#[test]
fn packed_image_is_accepted_in_chunks_of_any_size() {
    let whole = archive(TAG, |_, _| {});
    for piece in [1, 7, 511, 512, 513, 100_000] {
        assert_eq!(read(&whole, piece), Ok(()), "{piece}");
    }
    for cut in [0, 1, 511, 512, 1024, 2000, 2600] {
        assert!(read(&whole[..cut], 512).is_err(), "{cut}");
    }
}

#[test]
fn other_archives_are_refused() {
    for tag in [
        "debian:latest",
        "portcullis.invalid/packed/../debian:1",
        "portcullis.invalid/packed/notes",
        "portcullis.invalid/packed/a:b:c",
        "docker.io/portcullis.invalid/packed/a:b",
    ] {
        assert!(read(&archive(tag, |_, _| {}), 512).is_err(), "{tag}");
    }
    type Change = fn(&mut tar::Header);
    let changes: [Change; 8] = [
        |header| header.set_entry_type(tar::EntryType::Symlink),
        |header| header.set_entry_type(tar::EntryType::GNULongName),
        |header| header.set_entry_type(tar::EntryType::XHeader),
        |header| header.set_entry_type(tar::EntryType::GNUSparse),
        |header| header.set_path("repositories").expect("a name"),
        |header| {
            if header.set_path("a/../../etc/passwd").is_err() {
                header.as_mut_bytes()[0] = b'/';
            }
        },
        |header| header.as_mut_bytes()[345] = b'/',
        |header| header.as_mut_bytes()[124] = 0x80,
    ];
    for (n, change) in changes.into_iter().enumerate() {
        for at in 0..3 {
            let changed = archive(TAG, |file, header| {
                if file == at {
                    change(header);
                }
            });
            assert!(read(&changed, 512).is_err(), "{n} {at}");
        }
    }
    let mut more = archive(TAG, |_, _| {});
    more.extend(archive("debian:latest", |_, _| {}));
    assert!(read(&more, 512).is_err());
    let big = archive(TAG, |_, _| {});
    let mut reader = Reader::new(1000);
    assert_eq!(reader.take(&big).expect_err("a bound").code, Code::Limit);
}
