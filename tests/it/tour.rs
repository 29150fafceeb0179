//! The README's blocks, in order, in a shell: what they print, and what becomes of it.

use std::path::Path;
use std::process::Command;

use super::support::child::{BINARY, text};

#[test]
fn every_block_of_the_readme_does_what_the_readme_says() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/tour");
    let output = Command::new(script).arg(BINARY).output().unwrap();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
}
