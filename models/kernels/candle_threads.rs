//! Keeps candle's own worker threads from starting where a model is trained.
//!
//! candle uses them for element-wise operations and quantized matrices. They wait for one another in loops that
//! never sleep (`candle-core` 0.11, `utils.rs`, `BarrierGuard`) and so take
//! the cores from the threads that compute: a small decoder trains nearly twice as fast without them. Quantized
//! matrices are multiplied by them alone (`QMatMul`), so whoever answers questions needs them.

/// candle's own variable for the number of those threads.
const N_THREADS: &str = "CANDLE_NUM_THREADS";

/// Makes candle work on the calling thread, unless the user has set [`N_THREADS`].
///
/// To be called before another thread is started: with other threads, which could be reading the environment, it
/// does nothing.
pub fn start_none() {
    let is_set = std::env::var_os(N_THREADS).is_some();
    if !is_set && is_alone() {
        // SAFETY: this is the only thread of the process, so nobody reads the environment at the same time.
        unsafe { std::env::set_var(N_THREADS, "1") };
    }
}

/// Whether this process certainly has a single thread.
fn is_alone() -> bool {
    let threads = std::fs::read_dir("/proc/self/task");
    threads.is_ok_and(|threads| threads.count() == 1)
}
