//! The usual metrics of a process, by their usual names.

use std::fmt;

use procfs::{ProcResult, WithCurrentSystemInfo as _};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Reads the metrics of this process.
#[derive(Debug)]
pub(super) struct Process;

/// The kernel's figures of this process.
struct Usage {
    cpu_seconds: f64,
    resident_bytes: u64,
    virtual_bytes: u64,
    start_seconds: f64,
    threads: i64,
    open_files: usize,
    max_files: Option<u64>,
}

fn usage() -> ProcResult<Usage> {
    let process = procfs::process::Process::myself()?;
    let stat = process.stat()?;
    let (ticks, boot) = (procfs::ticks_per_second() as f64, procfs::boot_time_secs()?);
    let max_files = match process.limits()?.max_open_files.soft_limit {
        procfs::process::LimitValue::Value(limit) => Some(limit),
        procfs::process::LimitValue::Unlimited => None,
    };
    Ok(Usage {
        cpu_seconds: (stat.utime + stat.stime) as f64 / ticks,
        resident_bytes: stat.rss_bytes().get(),
        virtual_bytes: stat.vsize,
        start_seconds: boot as f64 + stat.starttime as f64 / ticks,
        threads: stat.num_threads,
        open_files: process.fd_count()?,
        max_files,
    })
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // Without /proc these metrics are missing, which is what others do then.
        let Ok(usage) = usage() else { return Ok(()) };
        let cpu = encoder.encode_descriptor(
            "process_cpu_seconds",
            "Processor time, in user mode and in the kernel",
            None,
            MetricType::Counter,
        )?;
        ConstCounter::new(usage.cpu_seconds).encode(cpu)?;
        let gauges = [
            ("process_resident_memory_bytes", "Resident memory", Some(usage.resident_bytes as f64)),
            ("process_virtual_memory_bytes", "Virtual memory", Some(usage.virtual_bytes as f64)),
            (
                "process_start_time_seconds",
                "When the process started, as Unix time",
                Some(usage.start_seconds),
            ),
            ("process_threads", "Threads", Some(usage.threads as f64)),
            ("process_open_fds", "Open files", Some(usage.open_files as f64)),
            ("process_max_fds", "The most open files", usage.max_files.map(|limit| limit as f64)),
        ];
        for (name, help, value) in gauges {
            let Some(value) = value else { continue };
            let encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(encoder)?;
        }
        Ok(())
    }
}
