//! Which providers are linked into this program.

use crate::{Cloud, Error, OptionSpec, Result, options::closest};

/// Announces a cloud. Written by [`crate::register!`].
#[derive(Debug)]
pub struct Registration {
    /// The name on the command line, in records and in reservations.
    pub name: &'static str,
    /// One sentence for lists.
    pub summary: &'static str,
    /// Version of the provider crate.
    pub version: &'static str,
    /// Every option.
    pub options: &'static [OptionSpec],
    /// Makes a fresh configuration value.
    pub new: fn() -> Box<dyn Cloud>,
}

inventory::collect!(Registration);

/// Announces the cloud of a provider crate.
///
/// A program sees it only when the crate is named in code (`use my_provider as _;`): a dependency that stands only in
/// the manifest is dropped by the linker, and its registration with it.
///
/// The `cloud` expression runs once for each use, so that two uses never share settings.
///
/// ```
/// use std::sync::Arc;
///
/// use cloud_providers::{
///     Cloud, CreateRequest, EnvSource, Error, Instance, InstanceId, MapEnv, OpContext, OptionSpec, Ownership,
///     Provider, Resource, Result, Settings, async_trait, lookup, names::instance_name,
/// };
///
/// // Each option is declared once. Flags, variables, help, checks and docs come from it.
/// const OPTIONS: &[OptionSpec] =
///     &[OptionSpec::text("loopback-address", "Address of the one machine").env("LOOPBACK_ADDRESS").required()];
///
/// struct LoopbackCloud(Settings);
///
/// #[async_trait]
/// impl Cloud for LoopbackCloud {
///     fn settings(&mut self) -> &mut Settings {
///         &mut self.0
///     }
///
///     async fn new_provider(&mut self) -> Result<Arc<dyn Provider>> {
///         let values = self.0.parse()?;
///         let address = values.text("loopback-address").parse().map_err(|e| {
///             Error::config("the address is not valid").with("set", "LOOPBACK_ADDRESS").with_source(e)
///         })?;
///         Ok(Arc::new(Loopback { address }))
///     }
/// }
///
/// #[derive(Debug)]
/// struct Loopback {
///     address: std::net::IpAddr,
/// }
///
/// #[async_trait]
/// impl Provider for Loopback {
///     async fn create_instance(&self, ctx: &OpContext, request: &CreateRequest) -> Result<Instance> {
///         request.check(&self.capabilities())?;
///         let name = instance_name(&request.unit.name_hint, &request.unit.id, 63)?;
///         ctx.record(&Resource::new(Resource::INSTANCE, &name)).await?;
///         Ok(Instance::new(InstanceId::new(&name), &name, vec![self.address]))
///     }
///
///     async fn delete_instance(&self, _: &OpContext, _: &InstanceId, _: &Ownership) -> Result<()> {
///         Ok(())
///     }
///
///     async fn teardown(&self) -> Result<()> {
///         Ok(())
///     }
/// }
///
/// cloud_providers::register! {
///     name: "loopback",
///     summary: "one machine that is always there",
///     options: OPTIONS,
///     cloud: LoopbackCloud(Settings::new(OPTIONS)),
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<()> {
/// let mut cloud = (lookup("loopback")?.new)();
/// cloud.load_env(&MapEnv::new([("LOOPBACK_ADDRESS", "127.0.0.1")]))?;
/// let provider: Arc<dyn Provider> = cloud.new_provider().await?;
/// # provider.teardown().await
/// # }
/// ```
#[macro_export]
macro_rules! register {
    (name: $name:expr, summary: $summary:expr, options: $options:expr, cloud: $new:expr $(,)?) => {
        $crate::inventory::submit! {
            $crate::Registration {
                name: $name,
                summary: $summary,
                version: env!("CARGO_PKG_VERSION"),
                options: $options,
                new: || ::std::boxed::Box::new($new),
            }
        }
    };
}

/// Returns all registrations, sorted by name.
pub fn registered() -> Vec<&'static Registration> {
    let mut all: Vec<&'static Registration> = inventory::iter::<Registration>().collect();
    all.sort_by_key(|r| r.name);
    all
}

/// Finds a cloud by name.
///
/// # Errors
///
/// [`crate::ErrorKind::Config`] with the known names when there is none, or when two crates claim the name.
pub fn lookup(name: &str) -> Result<&'static Registration> {
    lookup_in(&registered(), name)
}

fn lookup_in<'a>(all: &[&'a Registration], name: &str) -> Result<&'a Registration> {
    let found: Vec<&&Registration> = all.iter().filter(|r| r.name == name).collect();
    match found[..] {
        [one] => Ok(one),
        [] => {
            let known = all.iter().map(|r| r.name).collect::<Vec<_>>().join(", ");
            let known = if known.is_empty() { "none was compiled in".to_owned() } else { known };
            let near = closest(name, all.iter().map(|r| r.name));
            let hint = near.map(|n| format!(", did you mean {n:?}?")).unwrap_or_default();
            Err(Error::config(format!("unknown provider {name:?}{hint}")).with("known", known))
        }
        _ => Err(Error::config(format!("two crates register the provider {name:?}"))),
    }
}

/// Returns the section of a program's help that lists its providers.
///
/// ```
/// assert!(cloud_providers::provider_list().starts_with("Providers:\n  "));
/// ```
pub fn provider_list() -> String {
    let mut text = "Providers:\n".to_owned();
    let providers = registered();
    for provider in &providers {
        text.push_str(&format!("  {:<18} {}\n", provider.name, provider.summary));
    }
    if providers.is_empty() {
        // Features choose the providers; a program without one is for those who bring a crate of their own.
        text.push_str(
            "  (none was compiled in: build with a feature for each, such as --features libvirt; a provider crate of\n  \
             your own is linked only if the program's code names it, with `use my_provider as _;`)\n",
        );
    }
    text
}

/// Checks that what was compiled in is what registered, once at the start of a program.
///
/// # Errors
///
/// [`crate::ErrorKind::Internal`] naming what is missing or doubled.
pub fn check_registered(compiled_in: &[&str]) -> Result<()> {
    check_in(&registered(), compiled_in)
}

fn check_in(all: &[&Registration], compiled_in: &[&str]) -> Result<()> {
    let mut problems = Vec::new();
    for name in compiled_in {
        if !all.iter().any(|r| r.name == *name) {
            problems.push(format!("provider {name} was compiled in but did not register"));
        }
    }
    for pair in all.windows(2) {
        if pair[0].name == pair[1].name {
            problems.push(format!("provider {} registered twice", pair[0].name));
        }
    }
    match Error::all(crate::ErrorKind::Internal, problems) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &'static str) -> Registration {
        let new = || -> Box<dyn Cloud> { unreachable!("no test builds it") };
        Registration { name, summary: "", version: "0", options: &[], new }
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let (a, b) = (named("aws"), named("local"));
        let text = lookup_in(&[&a, &b], "awx").unwrap_err().to_string();
        assert_eq!(text, "unknown provider \"awx\", did you mean \"aws\"? (known: aws, local)");
        let text = lookup_in(&[&a], "something-else").unwrap_err().to_string();
        assert_eq!(text, "unknown provider \"something-else\" (known: aws)");
        let text = lookup_in(&[], "aws").unwrap_err().to_string();
        assert_eq!(text, "unknown provider \"aws\" (known: none was compiled in)");
        assert_eq!(lookup_in(&[&a, &b], "local").unwrap().name, "local");
    }

    #[test]
    fn a_name_of_two_crates_is_refused() {
        let (a, b) = (named("aws"), named("aws"));
        assert!(lookup_in(&[&a, &b], "aws").unwrap_err().to_string().contains("two crates"));
        let text = check_in(&[&a, &b], &["aws", "gcp"]).unwrap_err().to_string();
        assert!(
            text.contains("provider aws registered twice") && text.contains("provider gcp was compiled in"),
            "{text}"
        );
        assert!(check_in(&[&a], &["aws"]).is_ok());
    }

    #[test]
    fn what_is_linked_in_is_listed() {
        assert!(registered().iter().any(|r| r.name == "scripted"));
        assert!(check_registered(&["scripted"]).is_ok());
        assert!(check_registered(&["never-written"]).is_err());
    }
}
