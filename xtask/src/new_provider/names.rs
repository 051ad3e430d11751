//! The name of a provider in its forms, and which names can be taken.

use anyhow::{Result, ensure};

/// The longest name: it is part of crate, feature, flag and variable names.
const LONGEST: usize = 24;

/// Names that mean something else already, each with what it means.
const RESERVED: &[(&str, &str)] = &[
    ("all", "a set of providers of `cargo xtask features`"),
    ("bundle", "the crate that names the providers"),
    ("conformance", "the suite that every provider passes"),
    ("default", "the features that a build has by itself"),
    ("full", "a word for all features"),
    ("grid5000", "a testbed of its own kind"),
    ("help", "a word of cloud-api-adaptor's command line"),
    ("light", "a set of providers of `cargo xtask features`"),
    ("none", "a set of providers of `cargo xtask features`"),
    ("plugin", "a provider as a separate executable"),
    ("scripted", "the test double of the contract"),
    ("static", "a testbed of its own kind"),
    ("testing", "a feature for tests"),
    ("vagrant", "a testbed of its own kind"),
    ("version", "a word of cloud-api-adaptor's command line"),
];

/// A provider's name in every form in which it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Names {
    /// As users write it: `my-cloud`.
    pub(super) name: String,
    /// In crate names of code: `my_cloud`.
    pub(super) ident: String,
    /// In types: `MyCloud`.
    pub(super) type_name: String,
    /// In variables: `MY_CLOUD`.
    pub(super) env: String,
}

impl Names {
    /// Reads a name.
    ///
    /// # Errors
    ///
    /// Says what a name looks like, or what a reserved one means.
    pub(super) fn parse(name: &str) -> Result<Self> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let starts = name.starts_with(|c: char| c.is_ascii_lowercase());
        let dashes = !name.contains("--") && !name.ends_with('-');
        ensure!(
            starts && dashes && name.chars().all(allowed) && name.len() <= LONGEST,
            "{name:?} is no name for a provider: a letter, then up to {} of a-z, 0-9 and single dashes",
            LONGEST - 1
        );
        if let Some(bare) = name.strip_prefix("cloud-providers-") {
            anyhow::bail!("give the name without the prefix of the crate: {bare}");
        }
        if let Some((_, meaning)) = RESERVED.iter().find(|(reserved, _)| *reserved == name) {
            anyhow::bail!("{name} is reserved: it is {meaning}");
        }
        let capital = |part: &str| part[..1].to_ascii_uppercase() + &part[1..];
        Ok(Self {
            name: name.to_owned(),
            ident: name.replace('-', "_"),
            type_name: name.split('-').map(capital).collect(),
            env: name.replace('-', "_").to_ascii_uppercase(),
        })
    }

    /// Puts the forms in the place of their stand-ins.
    pub(super) fn fill(&self, template: &str) -> String {
        template
            .replace("__name__", &self.name)
            .replace("__ident__", &self.ident)
            .replace("__Type__", &self.type_name)
            .replace("__ENV__", &self.env)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_four_forms() {
        let names = Names::parse("my-cloud2").unwrap();
        let filled = names.fill("__name__ cloud_providers___ident__ __Type__Cloud __ENV___KEY");
        assert_eq!(filled, "my-cloud2 cloud_providers_my_cloud2 MyCloud2Cloud MY_CLOUD2_KEY");
    }

    #[test]
    fn what_is_no_name_or_taken_is_refused_with_the_reason() {
        for bad in
            ["", "2x", "-x", "x-", "a--b", "Aws", "a_b", "a b", "ä", "../x", "an-altogether-too-long-name"]
        {
            let error = Names::parse(bad).unwrap_err().to_string();
            assert!(error.contains("is no name for a provider"), "{bad}: {error}");
        }
        for (reserved, meaning) in RESERVED {
            let error = Names::parse(reserved).unwrap_err().to_string();
            assert!(error.contains(meaning), "{reserved}: {error}");
        }
        assert!(Names::parse("cloud-providers-x").unwrap_err().to_string().contains("without the prefix"));
    }
}
