use std::path::Path;

use super::*;

#[test]
fn the_quickstart_is_decided_as_its_readme_says() {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/quickstart");
    let engine = Engine::load(&["policies".into()], &base).unwrap();
    assert_eq!(engine.status().borrow().policies, 3);
}
