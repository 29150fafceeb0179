//! The documents say what is.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use token_wallet::config::keys;

fn in_the_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[test]
fn the_readme_explains_every_configuration_key() {
    let readme = std::fs::read_to_string(in_the_repository("README.md")).unwrap();
    let table = keys::table();
    assert!(readme.contains(&table), "the README's configuration table must be:\n\n{table}");
}

/// All functions' names in the sources below these folders.
fn functions(folders: [&str; 2]) -> Vec<String> {
    let mut folders = folders.map(in_the_repository).to_vec();
    let mut names = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let text = std::fs::read_to_string(path).unwrap();
                let defined = text.lines().filter_map(|line| line.split_once("fn ")?.1.split_once('('));
                names.extend(defined.map(|(name, _)| name.to_owned()));
            }
        }
    }
    names
}

/// Of `p10_p14_an_error…`: P10 and P14.
fn numbers(name: &str) -> impl Iterator<Item = String> {
    let is_number = |word: &&str| {
        let digits = word.strip_prefix(|letter: char| letter.is_ascii_lowercase()).unwrap_or_default();
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    let (before, _last) = name.rsplit_once('_').unwrap_or_default();
    before.split('_').take_while(is_number).map(str::to_uppercase)
}

#[test]
fn the_numbers_in_tests_names_are_explained() {
    let page = std::fs::read_to_string(in_the_repository("docs/promises.md")).unwrap();
    let mut named = BTreeSet::new();
    for name in functions(["tests", "src"]) {
        match name.strip_prefix("promise_") {
            Some(rest) => named.extend(numbers(rest).map(|number| format!("\n| promise {number}, "))),
            None => named.extend(numbers(&name).map(|number| format!("\n| {number} | "))),
        }
    }
    assert!(named.len() > 40 && named.contains("\n| P14 | ") && named.contains("\n| promise P7, "), "{named:?}");
    let unexplained: Vec<_> = named.iter().filter(|line| !page.contains(line.as_str())).collect();
    assert!(unexplained.is_empty(), "docs/promises.md has no line for {unexplained:?}");
}
