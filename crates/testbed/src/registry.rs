//! Providers that are linked in.

use std::{future::Future, pin::Pin, sync::Arc};

use cloud_providers::Result;

use crate::{Key, ProviderConfig, Testbed};

/// Builds a testbed from what the document says to it.
pub type New = fn(&ProviderConfig) -> Pin<Box<dyn Future<Output = Result<Arc<dyn Testbed>>> + Send + '_>>;

/// Announces a testbed. Written by [`crate::register_testbed!`].
#[derive(Debug)]
pub struct Registration {
    /// The name in `provider:`; hyphens are allowed.
    pub name: &'static str,
    /// Other names.
    pub aliases: &'static [&'static str],
    /// One sentence for lists.
    pub summary: &'static str,
    /// Version of the crate.
    pub version: &'static str,
    /// Every extra variable that it reads. Others are refused before [`Self::new`] is called, which finds each of these with
    /// its type checked and its default filled in.
    pub keys: &'static [Key],
    /// Makes the value.
    pub new: New,
}

inventory::collect!(Registration);

/// Announces the testbed of a crate, see [`Registration`] for the fields.
///
/// A program sees it only when the crate is named in code (`use my_testbed as _;`).
#[macro_export]
macro_rules! register_testbed {
    ($($field:ident : $value:expr),+ $(,)?) => {
        $crate::inventory::submit! {
            $crate::Registration { version: env!("CARGO_PKG_VERSION"), $($field: $value),+ }
        }
    };
}

/// Returns every testbed of this program, by name.
pub fn registrations() -> Vec<&'static Registration> {
    let mut all: Vec<_> = inventory::iter::<Registration>.into_iter().collect();
    all.sort_by_key(|r| r.name);
    all
}

/// Returns the testbed whose name or alias is `name`, in the same letters or in others.
///
/// The first by name when two claim it.
pub fn lookup(name: &str) -> Option<&'static Registration> {
    registrations().into_iter().find(|r| r.answers_to(name))
}

impl Registration {
    /// Says whether `name` is this testbed's name or one of its aliases, in whatever case.
    pub fn answers_to(&self, name: &str) -> bool {
        std::iter::once(&self.name).chain(self.aliases).any(|own| own.eq_ignore_ascii_case(name))
    }
}
