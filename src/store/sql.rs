//! SQL for two engines: statements with one text, values to bind, rows to read.
//!
//! A statement is declared with [`statements!`], which also lists it, so that every statement can be prepared by a
//! test on both engines. Times are bound, never asked of the database, but for the one by which replicas set their
//! clocks.

use std::borrow::Cow;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use sqlx::postgres::{PgArguments, PgRow, Postgres};
use sqlx::query::Query;
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteRow};
use sqlx::{Decode, Row as _, Type};

use super::error::StoreError;
use crate::clock::Timestamp;
use crate::domain::ids::{
    AccountId, ApiClientId, ApiKeyId, EventId, FlowId, GrantId, InstanceId, ProviderId, ProviderSecretId,
    RedirectUrlId, ReplicaId,
};
use crate::domain::provider::Slug;
use crate::domain::user::UserId;
use crate::telemetry;
use crate::vault::{Cell, Sealed};

/// One statement in both dialects. Only [`statements!`] makes them.
#[derive(Debug)]
pub(super) struct Sql {
    /// Its name in the source.
    pub(super) name: &'static str,
    pub(super) sqlite: &'static str,
    pub(super) postgres: &'static str,
}

/// Declares statements and `ALL`, the list of them. A text is made of literals, of macros that give literals, and of
/// parts for one engine: `[pg "…"]`, `[lite "…"]`.
macro_rules! statements {
    ($($name:ident { $($part:tt)+ })+) => {
        $(const $name: $crate::store::sql::Sql = $crate::store::sql::Sql {
            name: concat!(module_path!(), "::", stringify!($name)),
            sqlite: $crate::store::sql::text!(@lite [] $($part)+),
            postgres: $crate::store::sql::text!(@pg [] $($part)+),
        };)+

        /// Every statement of this file.
        pub(in crate::store) const ALL: &[$crate::store::sql::Sql] = &[$($name),+];
    };
}

macro_rules! text {
    (@$engine:ident [$($done:tt)*]) => { concat!($($done)*) };
    (@lite [$($done:tt)*] [lite $text:literal] $($rest:tt)*) => { $crate::store::sql::text!(@lite [$($done)* $text,] $($rest)*) };
    (@lite [$($done:tt)*] [pg $text:literal] $($rest:tt)*) => { $crate::store::sql::text!(@lite [$($done)*] $($rest)*) };
    (@pg [$($done:tt)*] [pg $text:literal] $($rest:tt)*) => { $crate::store::sql::text!(@pg [$($done)* $text,] $($rest)*) };
    (@pg [$($done:tt)*] [lite $text:literal] $($rest:tt)*) => { $crate::store::sql::text!(@pg [$($done)*] $($rest)*) };
    (@$engine:ident [$($done:tt)*] $text:literal $($rest:tt)*) => { $crate::store::sql::text!(@$engine [$($done)* $text,] $($rest)*) };
    (@$engine:ident [$($done:tt)*] $part:ident!() $($rest:tt)*) => { $crate::store::sql::text!(@$engine [$($done)* $part!(),] $($rest)*) };
}

/// Values to bind, in the order of `$1`, `$2`, ….
macro_rules! args {
    ($($value:expr),* $(,)?) => { &[$($crate::store::sql::Value::from($value)),*] };
}

pub(super) use {args, statements, text};

/// A value to bind.
pub(super) enum Value<'a> {
    Text(Option<Cow<'a, str>>),
    Int(Option<i64>),
    Flag(Option<bool>),
    Bytes(Option<&'a [u8]>),
}

/// A row of either engine.
pub(super) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

/// The columns of one table in a row, whose primary key names it in errors. Where a row joins tables, their columns
/// carry a prefix.
pub(super) struct Cells<'r> {
    row: &'r Row,
    table: &'static str,
    prefix: &'static str,
    id: String,
}

/// A type of column that both engines decode to.
pub(super) trait Primitive:
    Type<Sqlite> + Type<Postgres> + for<'r> Decode<'r, Sqlite> + for<'r> Decode<'r, Postgres>
{
}

impl<T> Primitive for T where
    T: Type<Sqlite> + Type<Postgres> + for<'r> Decode<'r, Sqlite> + for<'r> Decode<'r, Postgres>
{
}

impl Sql {
    fn count(&self) {
        telemetry::metrics::statement(self.name.trim_start_matches("token_wallet::store::"));
    }

    /// The `SQLite` statement with its values.
    pub(super) fn on_sqlite<'q>(&self, values: &'q [Value<'q>]) -> Query<'q, Sqlite, SqliteArguments> {
        self.count();
        values.iter().fold(sqlx::query(self.sqlite), |query, value| match value {
            Value::Text(text) => query.bind(text.as_deref()),
            Value::Int(int) => query.bind(*int),
            Value::Flag(flag) => query.bind(*flag),
            Value::Bytes(bytes) => query.bind(*bytes),
        })
    }

    /// The PostgreSQL statement with its values.
    pub(super) fn on_postgres<'q>(&self, values: &'q [Value<'q>]) -> Query<'q, Postgres, PgArguments> {
        self.count();
        values.iter().fold(sqlx::query(self.postgres), |query, value| match value {
            Value::Text(text) => query.bind(text.as_deref()),
            Value::Int(int) => query.bind(*int),
            Value::Flag(flag) => query.bind(*flag),
            Value::Bytes(bytes) => query.bind(*bytes),
        })
    }
}

impl Row {
    /// The columns of `table`, whose primary key is selected as `prefix` and `key`.
    pub(super) fn of(
        &self,
        table: &'static str,
        prefix: &'static str,
        key: &'static str,
    ) -> Result<Cells<'_>, StoreError> {
        Ok(Cells { row: self, table, prefix, id: self.get(&format!("{prefix}{key}"))? })
    }

    /// One column as it is.
    pub(super) fn get<T: Primitive>(&self, column: &str) -> Result<T, StoreError> {
        Ok(match self {
            Self::Sqlite(row) => row.try_get(column)?,
            Self::Postgres(row) => row.try_get(column)?,
        })
    }
}

impl Cells<'_> {
    /// The row does not decode at `column`.
    pub(super) fn corrupt(&self, column: &'static str) -> StoreError {
        StoreError::Corrupt { table: self.table, column, id: self.id.clone() }
    }

    /// A column as it is.
    pub(super) fn get<T: Primitive>(&self, column: &'static str) -> Result<T, StoreError> {
        match self.row.get(&format!("{}{column}", self.prefix)) {
            Err(StoreError::Other(_)) => Err(self.corrupt(column)),
            other => other,
        }
    }

    /// A text read by `read`.
    pub(super) fn read<T>(&self, column: &'static str, read: impl FnOnce(&str) -> Option<T>) -> Result<T, StoreError> {
        read(&self.get::<String>(column)?).ok_or_else(|| self.corrupt(column))
    }

    /// A text that may be missing, read by `read`.
    pub(super) fn read_opt<T>(
        &self,
        column: &'static str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, StoreError> {
        match self.get::<Option<String>>(column)? {
            Some(text) => read(&text).map(Some).ok_or_else(|| self.corrupt(column)),
            None => Ok(None),
        }
    }

    /// An id.
    pub(super) fn parse<T: FromStr>(&self, column: &'static str) -> Result<T, StoreError> {
        self.read(column, |text| text.parse().ok())
    }

    /// An id that may be missing.
    pub(super) fn parse_opt<T: FromStr>(&self, column: &'static str) -> Result<Option<T>, StoreError> {
        self.read_opt(column, |text| text.parse().ok())
    }

    /// A user's id.
    pub(super) fn user(&self, column: &'static str) -> Result<UserId, StoreError> {
        self.read(column, |text| UserId::parse(text).ok())
    }

    /// JSON.
    pub(super) fn json<T: DeserializeOwned>(&self, column: &'static str) -> Result<T, StoreError> {
        self.read(column, |text| serde_json::from_str(text).ok())
    }

    /// A count, as `u32` or another unsigned width.
    pub(super) fn count<T: TryFrom<i64>>(&self, column: &'static str) -> Result<T, StoreError> {
        T::try_from(self.get::<i64>(column)?).map_err(|_| self.corrupt(column))
    }

    /// A count that may be missing.
    pub(super) fn count_opt<T: TryFrom<i64>>(&self, column: &'static str) -> Result<Option<T>, StoreError> {
        self.get::<Option<i64>>(column)?.map(T::try_from).transpose().map_err(|_| self.corrupt(column))
    }

    /// A time.
    pub(super) fn time(&self, column: &'static str) -> Result<Timestamp, StoreError> {
        self.get(column).map(Timestamp::from_millis)
    }

    /// A time that may be missing.
    pub(super) fn time_opt(&self, column: &'static str) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.get::<Option<i64>>(column)?.map(Timestamp::from_millis))
    }

    /// A sealed value.
    pub(super) fn sealed<T: Cell>(&self, column: &'static str) -> Result<Sealed<T>, StoreError> {
        Sealed::from_stored(self.get(column)?).map_err(|_| self.corrupt(column))
    }

    /// A sealed value that may be missing.
    pub(super) fn sealed_opt<T: Cell>(&self, column: &'static str) -> Result<Option<Sealed<T>>, StoreError> {
        let bytes: Option<Vec<u8>> = self.get(column)?;
        bytes.map(Sealed::from_stored).transpose().map_err(|_| self.corrupt(column))
    }
}

/// JSON of a value that always has some: a list or a map of texts.
pub(super) fn to_json<T: serde::Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Other(error.to_string()))
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(Some(Cow::Borrowed(text)))
    }
}

impl<'a> From<Option<&'a str>> for Value<'a> {
    fn from(text: Option<&'a str>) -> Self {
        Self::Text(text.map(Cow::Borrowed))
    }
}

impl From<String> for Value<'_> {
    fn from(text: String) -> Self {
        Self::Text(Some(Cow::Owned(text)))
    }
}

impl From<i64> for Value<'_> {
    fn from(int: i64) -> Self {
        Self::Int(Some(int))
    }
}

impl From<Option<i64>> for Value<'_> {
    fn from(int: Option<i64>) -> Self {
        Self::Int(int)
    }
}

impl From<u32> for Value<'_> {
    fn from(count: u32) -> Self {
        Self::Int(Some(i64::from(count)))
    }
}

impl From<bool> for Value<'_> {
    fn from(flag: bool) -> Self {
        Self::Flag(Some(flag))
    }
}

impl From<Timestamp> for Value<'_> {
    fn from(at: Timestamp) -> Self {
        Self::Int(Some(at.millis()))
    }
}

impl From<Option<Timestamp>> for Value<'_> {
    fn from(at: Option<Timestamp>) -> Self {
        Self::Int(at.map(Timestamp::millis))
    }
}

impl<'a> From<&'a [u8]> for Value<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Bytes(Some(bytes))
    }
}

impl<'a> From<&'a [u8; 32]> for Value<'a> {
    fn from(bytes: &'a [u8; 32]) -> Self {
        Self::Bytes(Some(bytes))
    }
}

impl<'a> From<Option<&'a [u8; 32]>> for Value<'a> {
    fn from(bytes: Option<&'a [u8; 32]>) -> Self {
        Self::Bytes(bytes.map(<[u8; 32]>::as_slice))
    }
}

impl<'a, T: Cell> From<&'a Sealed<T>> for Value<'a> {
    fn from(sealed: &'a Sealed<T>) -> Self {
        Self::Bytes(Some(sealed.as_bytes()))
    }
}

impl<'a, T: Cell> From<Option<&'a Sealed<T>>> for Value<'a> {
    fn from(sealed: Option<&'a Sealed<T>>) -> Self {
        Self::Bytes(sealed.map(Sealed::as_bytes))
    }
}

impl<'a> From<&'a UserId> for Value<'a> {
    fn from(user: &'a UserId) -> Self {
        user.as_str().into()
    }
}

impl<'a> From<&'a Slug> for Value<'a> {
    fn from(slug: &'a Slug) -> Self {
        slug.as_str().into()
    }
}

macro_rules! bind_ids {
    ($($id:ident)*) => {$(
        impl From<$id> for Value<'_> {
            fn from(id: $id) -> Self {
                id.to_string().into()
            }
        }

        impl From<Option<$id>> for Value<'_> {
            fn from(id: Option<$id>) -> Self {
                Self::Text(id.map(|id| Cow::Owned(id.to_string())))
            }
        }
    )*};
}

bind_ids! {
    AccountId ApiClientId ApiKeyId EventId FlowId GrantId InstanceId ProviderId ProviderSecretId RedirectUrlId ReplicaId
}
