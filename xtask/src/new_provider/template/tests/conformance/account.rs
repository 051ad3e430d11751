//! One account for one case. This is what has to be written: each method says that it is missing.

use std::{sync::Arc, time::Duration};

use cloud_providers::{Cloud, CreateRequest, async_trait};
use cloud_providers___ident__::__Type__Cloud;
use cloud_providers_conformance::{Bounds, Found, Harness, Obstacle, Offer};

/// An account that nobody else uses while its case runs.
pub(crate) struct Account {
    endpoint: String,
}

impl Account {
    /// Starts an emulator or takes an empty account.
    pub(crate) async fn begin() -> Offer<Self> {
        let endpoint = endpoint()?;
        Ok(Self { endpoint })
    }
}

/// Returns where the account's interface is.
fn endpoint() -> Offer<String> {
    Err(unwritten("Account::begin"))
}

fn unwritten(function: &str) -> Obstacle {
    Obstacle::failed(format!(
        "write {function} in crates/cloud-providers-__name__/tests/conformance/account.rs"
    ))
}

#[async_trait]
impl Harness for Account {
    fn cloud(&self) -> Box<dyn Cloud> {
        Box::new(__Type__Cloud::new())
    }

    fn variables(&self) -> Vec<(String, String)> {
        [
            ("__ENV___ENDPOINT", self.endpoint.as_str()),
            ("__ENV___KEY", "key-of-the-tests"),
            ("__ENV___CALL_TIMEOUT", "1s"),
            ("__ENV___START_TIMEOUT", "5s"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    fn request(&self, blank: CreateRequest) -> CreateRequest {
        blank.with_user_data("#cloud-config\n")
    }

    fn bounds(&self) -> Bounds {
        Bounds::default().with_operation(Duration::from_secs(60))
    }

    fn user_tags_variable(&self) -> Offer<String> {
        Ok("__ENV___TAGS".to_owned())
    }

    fn bad_variables(&self) -> Vec<(String, String)> {
        vec![("__ENV___ENDPOINT".to_owned(), "nowhere".to_owned())]
    }

    async fn other_account(&self) -> Offer<Arc<dyn Harness>> {
        Ok(Arc::new(Self::begin().await?))
    }

    // Look around the provider, with the cloud's own tools or the emulator's state: what the provider forgets it does
    // not list either.
    async fn leftovers(&self) -> Offer<Vec<Found>> {
        Err(unwritten("Account::leftovers"))
    }

    // Everything below is optional; what is left out is skipped, and tests/conformance-skips.toml gives the reason.
    // The documentation of `Harness` lists what there is: faults of remote calls, foreign machines, broken lists.
}
