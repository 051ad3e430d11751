//! Asks EC2 whether the configuration can work, and changes nothing.

mod image;
mod network;
mod rights;

use std::sync::Arc;

use cloud_providers::{
    CreateRequest, Error, ErrorKind, Finding, OpContext, Result, Scope, Token, Unit, UserData, VerifyReport,
};

use crate::{
    AwsProvider,
    blueprint::Blueprint,
    client::{LaunchTemplate, TypeInfo},
    config::Cvm,
    known::Known,
};

/// Turns an answer into a value or a finding. What EC2 did not answer is not checked, which is no verdict.
pub(super) fn judge<T>(check: &str, answer: Result<T>) -> Result<Result<T, Finding>> {
    match answer {
        Ok(value) => Ok(Ok(value)),
        Err(error) if *error.kind() == ErrorKind::Cancelled => Err(error),
        Err(error) => Ok(Err(match error.kind() {
            ErrorKind::Transient | ErrorKind::Throttled => Finding::not_checked(check, error.report()),
            _ => Finding::of_error(check, &error),
        })),
    }
}

impl AwsProvider {
    /// Looks at everything that instances need, as far as each look allows the next.
    pub(crate) async fn verify(&self, ctx: &OpContext) -> Result<VerifyReport> {
        let mut report = VerifyReport::new();
        // Asked afresh: what was known at the start may have changed since.
        let known = &Known::default();
        let identity = self.calls.call(ctx, "GetCallerIdentity", self.calls.ec2.get_caller_identity()).await;
        match judge("credentials", identity)? {
            Ok(Some(arn)) => report.push(Finding::ok("credentials", arn)),
            Ok(None) => {
                let limits = self.calls.ec2.describe_account_attributes();
                match self.calls.call(ctx, "DescribeAccountAttributes", limits).await {
                    Err(error) if *error.kind() == ErrorKind::Auth => {
                        report.push(credentials(Finding::of_error("credentials", &error)));
                        return Ok(nothing_else(report));
                    }
                    Err(error) if *error.kind() == ErrorKind::Cancelled => return Err(error),
                    // A role without this right is known all the same.
                    _ => report.push(Finding::ok("credentials", "EC2 knows them")),
                }
            }
            Err(finding) => {
                report.push(credentials(finding));
                return Ok(nothing_else(report));
            }
        }
        if let Some(missing) = &self.missing {
            report.push(Finding::of_error("settings", missing));
        }
        let template = match judge("launch-template", known.template(ctx, &self.calls, &self.config).await)? {
            Ok(template) => template,
            Err(finding) => {
                report.push(finding.with_option("PODVM_LAUNCHTEMPLATE_NAME"));
                None
            }
        };
        if let Some(template) = &template {
            report.push(template_finding(template));
        }
        let types = self.verify_types(ctx, known, template.as_deref(), &mut report).await?;
        self.verify_image(ctx, known, template.as_deref(), types.first().map(|t| &**t), &mut report).await?;
        self.verify_network(ctx, known, template.as_deref(), &types, &mut report).await?;
        self.verify_rights(ctx, known, &mut report).await?;
        self.verify_quota(ctx, &mut report).await?;
        Ok(report)
    }

    /// Whether machines are confidential that nobody says more about.
    fn wants_confidential(&self, template: Option<&LaunchTemplate>) -> bool {
        match (self.config.cvm, template) {
            (Cvm::No, _) => false,
            (Cvm::Default, Some(template)) => template.sev_snp.unwrap_or(false),
            _ => true,
        }
    }

    /// Checks the types, and returns them, the default one first.
    async fn verify_types(
        &self,
        ctx: &OpContext,
        known: &Known,
        template: Option<&LaunchTemplate>,
        report: &mut VerifyReport,
    ) -> Result<Vec<Arc<TypeInfo>>> {
        let check = "instance-types";
        let default = match template {
            Some(template) => template.instance_type.clone(),
            None => Some(self.config.instance_type.clone()),
        };
        let config = &self.config;
        let mut names: Vec<String> = Vec::new();
        for name in default.iter().chain(&config.instance_types).chain(&config.fallback_types) {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        let types = match judge(check, known.types(ctx, &self.calls, &names).await)? {
            Ok(types) => types,
            Err(finding) => {
                report.push(finding.with_option("PODVM_INSTANCE_TYPE, PODVM_INSTANCE_TYPES"));
                return Ok(Vec::new());
            }
        };
        if !self.wants_confidential(template) {
            report.push(Finding::ok(check, names.join(", ")));
            return Ok(types);
        }
        let without: Vec<&str> = types.iter().filter(|t| !t.sev_snp).map(|t| t.name.as_str()).collect();
        report.push(match (types.first(), without.is_empty()) {
            (_, true) => Finding::ok(check, format!("{} with AMD SEV-SNP", names.join(", "))),
            (Some(first), _) if !first.sev_snp => {
                Finding::failed(check, format!("the default {} has no AMD SEV-SNP", first.name))
                    .with_option("PODVM_INSTANCE_TYPE, or DISABLECVM for machines that are not confidential")
            }
            _ => Finding::warning(check, format!("never used, without AMD SEV-SNP: {}", without.join(", ")))
                .with_option("PODVM_INSTANCE_TYPES"),
        });
        Ok(types)
    }

    /// Works out an instance that asks for nothing, as a create would.
    pub(crate) async fn blank(
        &self,
        ctx: &OpContext,
        known: &Known,
    ) -> Result<(Blueprint, crate::owned::Wanted)> {
        let scope = Scope::Cluster("verification".into());
        let unit = Unit { id: "verification".into(), name_hint: "verification".into() };
        let request = CreateRequest::new(Token::new(scope, "verification", 1), unit, "verification");
        let wanted = crate::owned::Wanted::new(&request, &self.config.tags, Self::name_of(&request)?);
        let blueprint = Blueprint::new(ctx, &self.calls, known, &self.config, &request, UserData::default());
        Ok((Box::pin(blueprint).await?, wanted))
    }
}

fn credentials(finding: Finding) -> Finding {
    finding.with_remedy(
        "give the program a role by its service account, its node or its profile, or set AWS_ACCESS_KEY_ID and \
         AWS_SECRET_ACCESS_KEY",
    )
}

/// Ends a report of which the rest needs credentials.
fn nothing_else(mut report: VerifyReport) -> VerifyReport {
    for check in ["instance-types", "image", "subnets", "security-groups", "permissions", "quota"] {
        report.push(Finding::not_checked(check, "EC2 does not know who asks"));
    }
    report
}

fn template_finding(template: &LaunchTemplate) -> Finding {
    let check = "launch-template";
    if template.id.is_empty() && template.image.is_none() && template.instance_type.is_none() {
        let why = "the role may not read it, so what it says is unknown";
        return Finding::warning(check, why).with_remedy("allow ec2:DescribeLaunchTemplateVersions");
    }
    let version = template.version.map_or(String::new(), |v| format!(" version {v}"));
    Finding::ok(check, format!("{}{version}", template.id))
}

/// Returns an error's reason in few words.
pub(super) fn reason(error: &Error) -> String {
    match (error.code(), error.cloud_message()) {
        (Some(code), Some(message)) if !message.is_empty() => format!("{code}: {message}"),
        (Some(code), _) => code.to_owned(),
        _ => error.report(),
    }
}
