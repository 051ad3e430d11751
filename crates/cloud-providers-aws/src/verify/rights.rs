//! What the identity may do, by `DryRun` and by asking; and the limits that EC2 tells.

use cloud_providers::{ErrorKind, Finding, OpContext, Result, VerifyReport, tags};

use super::{judge, reason};
use crate::{
    AwsProvider,
    client::{CreateInterface, DryRun, Query, Tags},
    known::Known,
    remote::{pages, whole},
};

/// Ids of the right form that nothing has.
const INSTANCE: &str = "i-00000000000000000";
const INTERFACE: &str = "eni-00000000000000000";
const ATTACHMENT: &str = "eni-attach-00000000000000000";
const ALLOCATION: &str = "eipalloc-00000000000000000";
const ASSOCIATION: &str = "eipassoc-00000000000000000";
const VOLUME: &str = "vol-00000000000000000";

impl AwsProvider {
    pub(super) async fn verify_rights(
        &self,
        ctx: &OpContext,
        known: &Known,
        report: &mut VerifyReport,
    ) -> Result<()> {
        self.verify_lists(ctx, report).await?;
        let launch = match judge("permission ec2:RunInstances", self.blank(ctx, known).await)? {
            Ok((blueprint, wanted)) => {
                blueprint.plan.offerings().first().map(|offering| blueprint.launch(&wanted, offering, 0))
            }
            // What stands in the way of an instance has been said by the other checks.
            Err(_) => None,
        };
        match &launch {
            None => {
                let why = "no launch can be put together, see the other checks";
                report.push(Finding::not_checked("permission ec2:RunInstances", why));
            }
            Some(launch) => {
                let call = DryRun::RunInstances(Box::new(launch.clone()));
                self.verify_right(ctx, &call, None, report).await?;
            }
        }
        let subnet = launch.and_then(|l| l.interfaces.first().and_then(|i| i.subnet.clone()));
        let second = "pods with a second interface do not start";
        let interface = CreateInterface {
            client_token: "verification".into(),
            subnet: subnet.unwrap_or_else(|| "subnet-00000000000000000".into()),
            groups: self.config.groups.clone(),
            description: "verification".into(),
            tags: Tags::from([(tags::SCOPE.to_owned(), "verification".to_owned())]),
            private_address: None,
        };
        let address = Tags::from([(tags::SCOPE.to_owned(), "verification".to_owned())]);
        let public = "pods with a second interface and a public address do not start";
        let volumes = "pods with volumes do not start";
        // A policy that asks for our tags says no to what does not exist, and so has none.
        let tagged =
            "that is right where the policy asks for the tag peerpod-scope, and otherwise nothing is removed";
        for (call, without) in [
            (DryRun::TerminateInstances(INSTANCE.into()), tagged),
            (DryRun::CreateNetworkInterface(Box::new(interface)), second),
            (DryRun::AttachNetworkInterface(INTERFACE.into(), INSTANCE.into()), second),
            (DryRun::ModifyNetworkInterfaceAttribute(INTERFACE.into(), ATTACHMENT.into()), second),
            (DryRun::DetachNetworkInterface(ATTACHMENT.into()), second),
            (DryRun::DeleteNetworkInterface(INTERFACE.into()), tagged),
            (DryRun::AllocateAddress(address), public),
            (DryRun::AssociateAddress(ALLOCATION.into(), INTERFACE.into()), public),
            (DryRun::DisassociateAddress(ASSOCIATION.into()), public),
            (DryRun::ReleaseAddress(ALLOCATION.into()), tagged),
            (DryRun::AttachVolume(VOLUME.into(), INSTANCE.into()), volumes),
            (DryRun::DetachVolume(VOLUME.into(), INSTANCE.into()), volumes),
        ] {
            self.verify_right(ctx, &call, Some(without), report).await?;
        }
        Ok(())
    }

    /// Asks whether one call would be allowed; `without` says what does not work otherwise, where that is not everything.
    async fn verify_right(
        &self,
        ctx: &OpContext,
        call: &DryRun,
        without: Option<&str>,
        report: &mut VerifyReport,
    ) -> Result<()> {
        let action = format!("ec2:{}", call.operation());
        let check = format!("permission {action}");
        let remedy = format!("allow {action}");
        report.push(match self.calls.call(ctx, call.operation(), self.calls.ec2.dry_run(call)).await {
            Ok(()) => Finding::ok(check, "allowed"),
            Err(error) => match (error.kind(), without) {
                (ErrorKind::Cancelled, _) => return Err(error),
                (ErrorKind::Permission, Some(without)) => {
                    Finding::warning(check, format!("not allowed: {without} ({})", reason(&error)))
                        .with_remedy(remedy)
                }
                (ErrorKind::Permission, None) => {
                    Finding::failed(check, format!("not allowed ({})", reason(&error))).with_remedy(remedy)
                }
                // Nothing has the id, and EC2 looked for it before it looked at the right.
                (ErrorKind::NotFound | ErrorKind::Transient | ErrorKind::Throttled, _) => {
                    Finding::not_checked(check, format!("EC2 says nothing about it ({})", reason(&error)))
                }
                (ErrorKind::Config, Some(_)) => {
                    Finding::not_checked(check, format!("EC2 says nothing about it ({})", reason(&error)))
                }
                _ => Finding::of_error(check, &error),
            },
        });
        Ok(())
    }

    /// Asks the questions of lists for something that is not there.
    async fn verify_lists(&self, ctx: &OpContext, report: &mut VerifyReport) -> Result<()> {
        let query = Query::tag(tags::SCOPE, "verification");
        let calls = &self.calls;
        let answers = [
            (
                "DescribeInstances",
                whole(pages!(calls, ctx, "DescribeInstances", describe_instances, &query)).map(|_| ()),
            ),
            (
                "DescribeNetworkInterfaces",
                whole(pages!(calls, ctx, "DescribeNetworkInterfaces", describe_network_interfaces, &query))
                    .map(|_| ()),
            ),
            (
                "DescribeVolumes",
                whole(pages!(calls, ctx, "DescribeVolumes", describe_volumes, &query)).map(|_| ()),
            ),
            (
                "DescribeAddresses",
                calls.call(ctx, "DescribeAddresses", calls.ec2.describe_addresses(&query)).await.map(|_| ()),
            ),
        ];
        for (operation, answer) in answers {
            let check = format!("permission ec2:{operation}");
            report.push(match judge(&check, answer)? {
                Ok(()) => Finding::ok(check, "allowed"),
                Err(finding) => finding.with_remedy(format!("allow ec2:{operation}")),
            });
        }
        Ok(())
    }

    /// Reads the limits that EC2 itself tells.
    pub(super) async fn verify_quota(&self, ctx: &OpContext, report: &mut VerifyReport) -> Result<()> {
        let check = "quota";
        let call = self.calls.ec2.describe_account_attributes();
        match self.calls.call(ctx, "DescribeAccountAttributes", call).await {
            Ok(limits) => {
                let told: Vec<String> =
                    limits.iter().map(|l| format!("{} {}", l.name, l.values.join(" "))).collect();
                report.push(Finding::ok(
                    check,
                    if told.is_empty() { "EC2 tells none".into() } else { told.join(", ") },
                ));
            }
            Err(error) if *error.kind() == ErrorKind::Cancelled => return Err(error),
            Err(error) => {
                let finding = Finding::not_checked(check, reason(&error));
                report.push(finding.with_remedy("allow ec2:DescribeAccountAttributes"));
            }
        }
        let why = "the number of vCPUs by family is told by Service Quotas only";
        report.push(
            Finding::not_checked("quota-vcpus", why)
                .with_remedy("aws service-quotas list-service-quotas --service-code ec2"),
        );
        Ok(())
    }
}
