//! The table of `longreel bench kernels` in small shapes, by Criterion: to see what a
//! change did. The shares of the machine's ceilings are the verb's.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use longreel::bench::{
    case::{CaseFilter, Op},
    work::prepare,
};
use longreel_kernels::attend::KvDtype;

fn kernels(c: &mut Criterion) {
    let selection = CaseFilter {
        ops: Op::ALL.to_vec(),
        dtypes: KvDtype::ALL.to_vec(),
        lengths: vec![2048],
        cache: 16_384,
        d: 128,
        heads: 8,
        kv_heads: 8,
        smaller: 4,
    };
    let mut group = c.benchmark_group("kernels");
    group.sample_size(20);
    for case in selection.cases() {
        let Ok(mut work) = prepare(&case) else { return };
        let amount = case.flops().unwrap_or(work.bytes);
        group.throughput(Throughput::Elements(amount as u64));
        let name = format!("{} {}, {}", case.op.name(), case.dtype.name(), case.shape);
        group.bench_function(name, |b| b.iter(|| (work.run)()));
    }
    group.finish();
}

criterion_group!(benches, kernels);
criterion_main!(benches);
