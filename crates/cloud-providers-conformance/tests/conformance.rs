//! The suite on the scripted provider.

use std::{process::ExitCode, sync::Arc};

use cloud_providers::{
    Cloud, CreateRequest, async_trait,
    scripted::{ScriptedCloud, World},
};
use cloud_providers_conformance::{Found, Harness, Offer, Suite};

struct InMemory(World);

#[async_trait]
impl Harness for InMemory {
    fn cloud(&self) -> Box<dyn Cloud> {
        Box::new(ScriptedCloud::over(&self.0))
    }

    fn variables(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    fn request(&self, blank: CreateRequest) -> CreateRequest {
        blank.with_user_data("#cloud-config\n")
    }

    async fn leftovers(&self) -> Offer<Vec<Found>> {
        Ok(self.0.resources().into_iter().map(|r| Found::new(r.resource).with_tags(r.tags)).collect())
    }
}

fn main() -> ExitCode {
    Suite::new("scripted")
        .runtime(|| tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build())
        .main(|_| async { Ok(Arc::new(InMemory(World::new())) as Arc<dyn Harness>) })
}
