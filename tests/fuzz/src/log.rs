//! Files of the audit log: whoever verifies a log reads what somebody else wrote.

use portcullis_audit::{FRAME_MAX, Line, LineHead, frames};

/// The first byte picks: the rest is a file, or the body of frames that are otherwise right, or a
/// line.
pub fn target(bytes: &[u8]) {
    let Some((&pick, rest)) = bytes.split_first() else { return };
    match pick % 3 {
        0 => file(rest),
        1 => {
            let mut all = Vec::new();
            // Frames with a right checksum, so that what is behind it is reached.
            for (at, body) in rest.split_inclusive(|byte| *byte == 0xa5).enumerate() {
                let Some((&flags, body)) = body.split_first() else { continue };
                let count = body.iter().filter(|byte| **byte == b'\n').count() as u32;
                all.extend(framed(flags & 7, at as u64, count ^ u32::from(flags >> 3), body));
            }
            file(&all);
        }
        _ => line(rest),
    }
}

fn file(bytes: &[u8]) {
    let all: Vec<_> = frames(bytes).collect();
    for (at, frame) in all.iter().enumerate() {
        match frame {
            Ok(frame) => {
                assert!(frame.body.len() <= FRAME_MAX, "more than a frame may have");
                let lines: Vec<_> = frame.lines().collect();
                assert_eq!(lines.len(), frame.count as usize);
                assert_eq!(
                    lines.iter().map(|line| line.len() + 1).sum::<usize>(),
                    frame.body.len()
                );
            }
            Err(_) => assert_eq!(at + 1, all.len(), "something is read behind a bad frame"),
        }
    }
    // What was cut off takes nothing with it that stands before.
    let cut = &bytes[..bytes.len() / 2];
    let whole: Vec<_> = frames(cut).map_while(Result::ok).collect();
    let same = whole.iter().zip(all.iter().flatten()).filter(|(one, other)| one == other).count();
    assert_eq!(same, whole.len(), "a cut file says something else");
}

/// A frame as the documentation of the format has it.
fn framed(flags: u8, first: u64, count: u32, body: &[u8]) -> Vec<u8> {
    let mut covered = vec![flags];
    covered.extend(first.to_le_bytes());
    covered.extend(count.to_le_bytes());
    covered.extend_from_slice(body);
    let mut frame = (covered.len() as u32).to_le_bytes().to_vec();
    frame.extend(crc32fast::hash(&covered).to_le_bytes());
    frame.extend(covered);
    frame
}

fn line(text: &[u8]) {
    // JSON may stand between blanks.
    let text = text.trim_ascii();
    let head = LineHead::read(text);
    let Ok(line) = serde_json::from_slice::<Line>(text) else { return };
    assert_eq!(line.head(), head, "a line without a canonical head");
    assert_eq!(Some(line.seq()), head.map(|head| head.seq));
    assert_eq!(serde_json::to_vec(&line).expect("JSON").as_slice(), text);
    if let Ok(entry) = line.entry() {
        assert_eq!(entry.seq, line.seq());
    }
}
