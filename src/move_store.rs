//! Moving from `SQLite` to PostgreSQL: the store is left, copied, and started on elsewhere.

use std::sync::Arc;

use crate::clock::Clock;
use crate::config::{Config, StoreUrl};
use crate::keys::{self, KeysError};
use crate::store::{Copied, Engine, Progress, Store, StoreError};
use crate::wallet::spool::{Spool, SpoolError, Whose};

/// Why a store cannot be moved.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// It cannot be opened: store, root key or keyring.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// Whether its spool is empty cannot be told.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// One of the two stores failed. What is copied stays copied.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// From `SQLite` to PostgreSQL, no other way.
    #[error("a store is moved from SQLite (store.url of the configuration) to PostgreSQL (--to)")]
    Engines,
    /// Refresh tokens may be there and nowhere else.
    #[error(
        "the spool holds {0} answers that the store has not taken; run `serve` on it until it is ready, then stop it"
    )]
    Spooled(usize),
    /// Something else is there already.
    #[error("the database to move to is in use: it holds another instance's rows")]
    Foreign,
    /// It went somewhere else, or is still to go there.
    #[error("the store was left for {0}: only that move can be gone on with, or abandoned")]
    Elsewhere(String),
    /// There is no move to that place to abandon.
    #[error("the store is not being moved there")]
    NotLeft,
    /// It is the one in use already.
    #[error("the store has been moved: the copy is whole and may be in use")]
    Done,
}

impl MoveError {
    /// Whether an operator must mend something first (exit code 78), as against a store that is away.
    pub const fn is_configuration(&self) -> bool {
        match self {
            Self::Keys(error) => error.is_configuration(),
            Self::Spool(error) => error.is_configuration(),
            Self::Store(error) => error.is_configuration(),
            _ => true,
        }
    }
}

/// Moves the configured store to `target`. Told again after a failure it goes on where it stopped. From its first row on
/// no wallet starts on the old store; none starts on the new one before its last.
pub async fn move_store(
    config: &Config,
    target: &StoreUrl,
    clock: &Clock,
    progress: Progress<'_>,
) -> Result<(), MoveError> {
    let (from, to) = both(config, target).await?;
    let moved = async {
        let opened = keys::open_left(&from, config).await?;
        from.migrate().await?;
        to.migrate().await?;
        let whose = Whose { instance: opened.instance.id, replica: Some(opened.instance.replica) };
        let (_spool, left) = Spool::open(&config.spool_dir, whose, Arc::clone(&opened.vault), clock.now())?;
        if !left.is_empty() {
            return Err(MoveError::Spooled(left.len()));
        }
        let place = target.place();
        if let Some(other) = opened.instance.left_for.filter(|left_for| *left_for != place) {
            return Err(MoveError::Elsewhere(other));
        }
        let begun = from.leave(&place).await?;
        match from.copy_into(&to, progress).await? {
            Copied::Whole => Ok(()),
            Copied::Foreign => {
                if begun {
                    from.stay(&place).await?;
                }
                Err(MoveError::Foreign)
            }
        }
    };
    let moved = moved.await;
    from.close().await;
    to.close().await;
    moved
}

/// Gives up a move that is not whole: wallets start on the old store again. What was copied stays where it is.
pub async fn abandon_move(config: &Config, target: &StoreUrl) -> Result<(), MoveError> {
    let (from, to) = both(config, target).await?;
    let abandoned = async {
        to.migrate().await?;
        if to.keyring().await?.is_some() {
            return Err(MoveError::Done);
        }
        if from.stay(&target.place()).await? { Ok(()) } else { Err(MoveError::NotLeft) }
    };
    let abandoned = abandoned.await;
    from.close().await;
    to.close().await;
    abandoned
}

async fn both(config: &Config, target: &StoreUrl) -> Result<(Store, Store), MoveError> {
    let from = keys::store(config).await?;
    let to = Store::open(target.expose(), 4).await?;
    if from.engine() == Engine::Sqlite && to.engine() == Engine::Postgres {
        return Ok((from, to));
    }
    from.close().await;
    to.close().await;
    Err(MoveError::Engines)
}
