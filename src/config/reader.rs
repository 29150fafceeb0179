//! Reads values one by one out of the merged sources and keeps every fault, so that all are told at once.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::Read as _;
use std::path::Path;

use figment::error::Kind;
use figment::value::{Dict, Map, Value};
use figment::{Error, Figment, Metadata, Profile, Provider};
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::keys::{KEYS, variable_of};
use super::{ConfigError, DEFAULT_FILE, Fault};

/// The origin of values that nobody set.
const DEFAULT: &str = "default";

/// The origin of values that are nowhere.
const NOWHERE: &str = "not set";

/// What every variable of ours begins with.
const PREFIX: &str = "TOKEN_WALLET__";

/// No secret file is larger.
const MOST_SECRET: u64 = 16 * 1024;

/// One source of values and its name in faults.
struct Layer {
    origin: String,
    values: Dict,
}

/// Takes values out of the merged sources.
pub(super) struct Reader {
    figment: Figment,
    faults: Vec<Fault>,
}

/// Merges the defaults, the file and the variables. Only a source that cannot be read at all is a fault here.
pub(super) fn sources(
    file: Option<&Path>,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Figment, ConfigError> {
    let defaults = KEYS.iter().filter_map(|key| Some((key.path, key.default?)));
    let mut figment = Figment::new();
    for (path, value) in defaults {
        figment = figment.merge(Layer::of_one(DEFAULT, &path.split('.').collect::<Vec<_>>(), value));
    }
    if let Some(layer) = read_file(file)? {
        figment = figment.merge(layer);
    }
    // Sorted, so that the same environment always gives the same faults.
    for (name, value) in variables.into_iter().collect::<BTreeMap<_, _>>() {
        let Some(path) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        let origin = format!("variable {}", name.to_string_lossy());
        let value = value.to_str().ok_or_else(|| ConfigError::of_source(&origin, "is not UTF-8"))?;
        let path = path.to_lowercase();
        figment = figment.merge(Layer::of_one(&origin, &path.split("__").collect::<Vec<_>>(), value));
    }
    Ok(figment)
}

impl Layer {
    fn of_one(origin: &str, path: &[&str], value: &str) -> Self {
        let Ok(value) = value.parse::<Value>();
        let nested = path.iter().rev().fold(value, |value, part| Dict::from([((*part).to_owned(), value)]).into());
        Self { origin: origin.to_owned(), values: nested.into_dict().unwrap_or_default() }
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        Ok(Map::from([(Profile::Default, self.values.clone())]))
    }
}

impl Reader {
    pub(super) const fn new(figment: Figment) -> Self {
        Self { figment, faults: Vec::new() }
    }

    /// The value of a key that has a default; `None` after a fault.
    pub(super) fn get<T: DeserializeOwned>(&mut self, key: &str) -> Option<T> {
        let value = self.optional(key);
        if value.is_none() && !self.faults.iter().any(|fault| fault.key == key) {
            self.fault(key, "is required");
        }
        value
    }

    /// The value of a key, if it is set; `None` after a fault, too.
    pub(super) fn optional<T: DeserializeOwned>(&mut self, key: &str) -> Option<T> {
        if !self.figment.contains(key) {
            return None;
        }
        match self.figment.extract_inner(key) {
            Ok(value) => Some(value),
            Err(error) => {
                for error in error {
                    self.fault(key, explain(&error.kind));
                }
                None
            }
        }
    }

    /// Whether somebody set the key.
    pub(super) fn is_set(&self, key: &str) -> bool {
        self.figment.find_metadata(key).is_some_and(|metadata| metadata.name != DEFAULT)
    }

    /// What a file with a secret holds, without the line break at its end.
    pub(super) fn secret_file(&mut self, key: &str, path: &Path) -> Option<Zeroizing<String>> {
        let mut text = Zeroizing::new(String::new());
        let read = std::fs::File::open(path).and_then(|file| file.take(MOST_SECRET).read_to_string(&mut text));
        if let Err(error) = read {
            self.fault(key, format_args!("names {}, which cannot be read: {error}", path.display()));
            return None;
        }
        let length = text.trim_end_matches(['\r', '\n']).len();
        text.truncate(length);
        Some(text)
    }

    /// Keeps a fault of a key.
    pub(super) fn fault(&mut self, key: &str, what: impl fmt::Display) {
        let origin = match self.figment.find_metadata(key) {
            Some(metadata) => metadata.name.clone().into_owned(),
            None => format!("{NOWHERE}; its variable is {}", variable_of(key)),
        };
        self.faults.push(Fault { key: key.to_owned(), what: what.to_string(), origin });
    }

    /// The configuration, or everything that is wrong.
    pub(super) fn finish<T>(mut self, config: Option<T>) -> Result<T, ConfigError> {
        match self.figment.extract::<Dict>() {
            Ok(values) => self.unknown("", &values),
            Err(error) => return Err(ConfigError::of_source(NOWHERE, error.kind)),
        }
        match config {
            Some(config) if self.faults.is_empty() => Ok(config),
            _ => Err(ConfigError { faults: self.faults }),
        }
    }

    /// Keys that nobody would read are mistakes: a misspelt one would leave its default in force.
    fn unknown(&mut self, within: &str, values: &Dict) {
        for (name, value) in values {
            let path = if within.is_empty() { name.clone() } else { format!("{within}.{name}") };
            let section = format!("{path}.");
            let known = KEYS.iter().any(|key| key.path == path);
            let is_section = KEYS.iter().any(|key| key.path.starts_with(&section));
            match value {
                _ if known => {}
                Value::Dict(_, inner) if is_section => self.unknown(&path, inner),
                _ if is_section => self.fault(&path, "must be a section"),
                _ => self.fault(&path, "is no key of the wallet"),
            }
        }
    }
}

/// A value that is not what the key needs, without the value.
fn explain(kind: &Kind) -> String {
    match kind {
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected) => format!("must be {expected}"),
        Kind::InvalidLength(_, expected) => format!("must have {expected}"),
        Kind::UnknownVariant(_, known) => format!("must be {}", known.join(" or ")),
        Kind::ISizeOutOfRange(_) | Kind::USizeOutOfRange(_) => "is out of range".to_owned(),
        // A parser's own message may quote the value.
        _ => "has the wrong shape".to_owned(),
    }
}

fn read_file(file: Option<&Path>) -> Result<Option<Layer>, ConfigError> {
    let path = file.unwrap_or(Path::new(DEFAULT_FILE));
    let origin = path.display().to_string();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && file.is_none() => return Ok(None),
        Err(error) => return Err(ConfigError::of_source(origin, format_args!("cannot be read: {error}"))),
    };
    // The parser's own report quotes the line, which may hold a secret.
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        ConfigError::of_source(&origin, format_args!("line {line}: {}", error.message()))
    })?;
    let values = Value::serialize(table).ok().and_then(Value::into_dict).unwrap_or_default();
    Ok(Some(Layer { origin, values }))
}
