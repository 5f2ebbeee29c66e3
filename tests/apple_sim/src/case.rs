//! One product through the plan and the kernels, held against a float64 oracle.

use std::ffi::c_void;
use std::fmt;
use std::ptr::null_mut;

use half::{bf16, f16};

use crate::host::{AneError, Constants, ExecutorOptions, Host, Operand, Options, RunArgs, RunInfo, create};
use crate::library::{Binding, Counts, Kernels, Memory, Schedule};
use crate::plan::{Desc, Overrides, Plan, element, flag, parts, plan};

/// What the operands hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    /// Uniform in (-1, 1).
    Uniform,
    /// Integers from -4 to 4: f32 sums are exact, so the result must be.
    Integers,
    /// Uniform, with some NaN and infinities.
    Special,
}

/// `ANE_OPTION_ALLOW_KNOWN_FAULTS`.
pub const ALLOW_KNOWN_FAULTS: u32 = 4;

/// A product to run.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the names are those of ANEMatMulDesc")]
pub struct Case {
    pub batch: usize,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub transpose_a: bool,
    pub transpose_b: bool,
    /// Of A and B.
    pub input: i32,
    /// Of C and the residual.
    pub output: i32,
    pub bias: Option<i32>,
    pub residual: bool,
    pub activation: i32,
    pub alpha: f32,
    /// Elements between the rows of A, B, C and the residual.
    pub padding: [usize; 4],
    /// Items of the batch share B.
    pub shared_b: bool,
    /// A run of fewer rows than the product was compiled for.
    pub rows: Option<usize>,
    pub device_class: u32,
    pub overrides: Overrides,
    pub data: Data,
    pub seed: u64,
    /// The shim is asked to run it in spite of a known fault.
    pub allow_known_faults: bool,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            batch: 1,
            m: 1,
            n: 1,
            k: 1,
            transpose_a: false,
            transpose_b: false,
            input: element::F32,
            output: element::F32,
            bias: None,
            residual: false,
            activation: 0,
            alpha: 1.0,
            padding: [0; 4],
            shared_b: false,
            rows: None,
            device_class: 0,
            overrides: Overrides::default(),
            data: Data::Uniform,
            seed: 1,
            allow_known_faults: false,
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}x{}x{}", self.batch, self.m, self.n, self.k)?;
        if let Some(rows) = self.rows {
            write!(f, " ({rows} rows)")?;
        }
        let transposes = [(self.transpose_a, 'A'), (self.transpose_b, 'B')];
        for (_, name) in transposes.iter().filter(|(set, _)| *set) {
            write!(f, " {name}^T")?;
        }
        write!(
            f,
            " types {}->{} bias {:?} residual {} activation {} alpha {} padding {:?} shared B {} class {} {:?} {:?}",
            self.input,
            self.output,
            self.bias,
            self.residual,
            self.activation,
            self.alpha,
            self.padding,
            self.shared_b,
            self.device_class,
            self.overrides,
            self.data
        )
    }
}

fn size_of_type(element: i32) -> usize {
    if element == element::F32 { 4 } else { 2 }
}

fn unit_roundoff(element: i32) -> f64 {
    match element {
        element::F32 => 2f64.powi(-24),
        element::F16 => 2f64.powi(-11),
        _ => 2f64.powi(-8),
    }
}

fn write_value(bytes: &mut [u8], element: i32, value: f32) {
    match element {
        element::F32 => bytes.copy_from_slice(&value.to_ne_bytes()),
        element::F16 => bytes.copy_from_slice(&f16::from_f32(value).to_ne_bytes()),
        _ => bytes.copy_from_slice(&bf16::from_f32(value).to_ne_bytes()),
    }
}

fn read_value(bytes: &[u8], element: i32) -> f64 {
    match (element, bytes) {
        (element::F32, &[a, b, c, d]) => f64::from(f32::from_ne_bytes([a, b, c, d])),
        (element::F16, &[a, b]) => f16::from_ne_bytes([a, b]).to_f64(),
        (element::BF16, &[a, b]) => bf16::from_ne_bytes([a, b]).to_f64(),
        _ => unreachable!("an element has the size of its type"),
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014).
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of the values.
    pub fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[(self.next_u64() % values.len() as u64) as usize]
    }

    fn value(&mut self, data: Data) -> f32 {
        let bits = self.next_u64();
        let uniform = (bits >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        match data {
            Data::Integers => ((bits >> 32) % 9) as f32 - 4.0,
            Data::Special if bits.is_multiple_of(61) => {
                [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][(bits / 61 % 3) as usize]
            }
            _ => uniform,
        }
    }
}

/// A stored matrix, or a batch of them: exactly as long as it must be, with gaps that nobody wrote.
#[derive(Clone)]
struct Matrix {
    memory: Memory,
    element: i32,
    rows: usize,
    cols: usize,
    ld: usize,
    stride: usize,
}

impl Matrix {
    fn new(element: i32, batch: usize, rows: usize, cols: usize, padding: usize, shared: bool) -> Self {
        let ld = (cols + padding).max(1);
        // An odd distance between items, where rows have gaps too.
        let stride = if shared { 0 } else { rows * ld + padding };
        let empty = batch == 0 || rows == 0 || cols == 0;
        let elements = if empty { 0 } else { (batch - 1) * stride + (rows - 1) * ld + cols };
        let memory = Memory::uninitialised(elements * size_of_type(element));
        Self { memory, element, rows, cols, ld, stride }
    }

    fn range(&self, item: usize, row: usize, col: usize) -> std::ops::Range<usize> {
        let size = size_of_type(self.element);
        let at = (item * self.stride + row * self.ld + col) * size;
        at..at + size
    }

    fn fill(mut self, batch: usize, data: Data, random: &mut Random) -> Self {
        let items = if self.stride == 0 { batch.min(1) } else { batch };
        for item in 0..items {
            for row in 0..self.rows {
                for col in 0..self.cols {
                    let range = self.range(item, row, col);
                    write_value(&mut self.memory.bytes[range.clone()], self.element, random.value(data));
                    self.memory.initialised[range].fill(1);
                }
            }
        }
        self
    }

    fn get(&self, item: usize, row: usize, col: usize) -> f64 {
        read_value(&self.memory.bytes[self.range(item, row, col)], self.element)
    }
}

/// `ANEActivation` in f64 with its largest slope, and the error that f32 may add at `x`: 16 units in
/// the last place of the result, and 4 of the argument's share where an exponential is involved (the
/// crate's accuracy bound allows more of the result, 64 units).
fn activate(activation: i32, x: f64) -> (f64, f64, f64) {
    let logistic = |x: f64| 1.0 / (1.0 + (-x).exp());
    let zero_at_minus_infinity = x == f64::NEG_INFINITY && (2..=4).contains(&activation);
    let (value, slope) = match activation {
        _ if zero_at_minus_infinity => (0.0, 1.13),
        0 => (x, 1.0),
        1 => (if x < 0.0 { 0.0 } else { x }, 1.0),
        2 => (0.5 * x * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2), 1.13),
        3 => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            (x * logistic(2.0 * u), 1.13)
        }
        4 => (x * logistic(x), 1.1),
        5 => (logistic(x), 0.25),
        _ => (x.tanh(), 1.0),
    };
    let ulp = f64::from(f32::EPSILON);
    let error = match activation {
        0 | 1 => 0.0,
        2..=4 if x.is_finite() => 16.0 * ulp * value.abs() + 4.0 * ulp * x.abs().min(16.0),
        2..=4 => 0.0,
        _ => 16.0 * ulp * value.abs() + 4.0 * ulp * x.abs().min(1.0),
    };
    (value, slope, error)
}

/// What a case did.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// Its plan.
    pub plan: Plan,
    /// Sums over its launches.
    pub counts: Counts,
}

/// How operands reach the shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passing {
    /// Pointers.
    Data,
    /// Pointers, and B when compiled.
    ConstantB,
    /// Buffers of the device, from their start.
    Buffers,
    /// Buffers of the device, at offsets that are multiples of 32 bytes.
    Offsets,
    /// Buffers of the device, at offsets that are no multiple of 16 bytes.
    OddOffsets,
    /// Wrapped pages, from their start.
    Wrapped,
    /// Buffers that the host may not see, from their start.
    Device,
    /// Buffers that the host may not see, at offsets that are no multiple of 4 bytes where elements allow it.
    DeviceOffsets,
}

impl Passing {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Data,
        Self::ConstantB,
        Self::Buffers,
        Self::Offsets,
        Self::OddOffsets,
        Self::Wrapped,
        Self::Device,
        Self::DeviceOffsets,
    ];

    fn in_buffers(self) -> bool {
        !matches!(self, Self::Data | Self::ConstantB)
    }

    fn is_device(self) -> bool {
        matches!(self, Self::Device | Self::DeviceOffsets)
    }
}

/// Operands of one run.
struct Lent<'h> {
    host: &'h Host,
    device: *mut c_void,
    passing: Passing,
    buffers: Vec<(*mut c_void, Option<Pages>)>,
}

/// Whole pages.
struct Pages {
    start: *mut u8,
    layout: std::alloc::Layout,
}

impl Lent<'_> {
    fn lend(&mut self, bytes: &mut [u8]) -> Operand {
        let shim = self.host.shim;
        let length_bytes = bytes.len() as u64;
        let offset = match self.passing {
            Passing::Data | Passing::ConstantB => return Operand::data(bytes),
            Passing::Buffers | Passing::Wrapped | Passing::Device => 0,
            Passing::Offsets => 32,
            Passing::OddOffsets => 20,
            Passing::DeviceOffsets => 22,
        };
        let (mut buffer, mut pages) = (null_mut(), None);
        let room = (bytes.len() + offset).max(1).next_multiple_of(4096);
        let status = if self.passing == Passing::Wrapped {
            let layout = std::alloc::Layout::from_size_align(room, 4096).expect("a size of pages");
            // SAFETY: the size is not zero.
            let start = unsafe { std::alloc::alloc_zeroed(layout) };
            pages = Some(Pages { start, layout });
            // SAFETY: whole pages, freed after the buffer.
            unsafe { (shim.buffer_wrap)(self.device, start.cast(), room as u64, &mut buffer, null_mut()) }
        } else {
            // Exactly as long as needed: nothing lies behind the operand.
            let exact = (bytes.len() + offset) as u64;
            // SAFETY: out is live, and err may be NULL.
            unsafe {
                let kind = i32::from(self.passing.is_device());
                (shim.buffer_create)(self.device, kind, exact, &mut buffer, null_mut())
            }
        };
        assert_eq!(status, 0, "a buffer");
        // SAFETY: the buffer is at least `offset + bytes.len()` long.
        unsafe {
            if self.passing.is_device() {
                let data = bytes.as_ptr().cast();
                let status = (shim.buffer_write)(buffer, offset as u64, data, length_bytes, null_mut());
                assert_eq!(status, 0, "buffer_write");
            } else {
                let contents = (shim.buffer_contents)(buffer).cast::<u8>();
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), contents.add(offset), bytes.len());
            }
        }
        self.buffers.push((buffer, pages));
        Operand { data: null_mut(), buffer, offset_bytes: offset as u64, length_bytes }
    }

    /// Copies what a run left in a lent operand.
    fn fetch(&self, operand: &Operand, bytes: &mut [u8]) {
        let (shim, length) = (self.host.shim, bytes.len() as u64);
        if operand.buffer.is_null() {
            return;
        }
        // SAFETY: as in `lend`.
        unsafe {
            if self.passing.is_device() {
                let (to, err) = (bytes.as_mut_ptr().cast(), null_mut());
                let status = (shim.buffer_read)(operand.buffer, operand.offset_bytes, to, length, err);
                assert_eq!(status, 0, "buffer_read");
            } else {
                let contents = (shim.buffer_contents)(operand.buffer).cast::<u8>();
                let from = contents.add(operand.offset_bytes as usize);
                std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len());
            }
        }
    }

    fn give_back(self) {
        for (buffer, pages) in self.buffers {
            // SAFETY: made in `lend`; the pages outlive their buffer.
            unsafe { (self.host.shim.buffer_destroy)(buffer) };
            if let Some(pages) = pages {
                // SAFETY: allocated with this layout.
                unsafe { std::alloc::dealloc(pages.start, pages.layout) };
            }
        }
    }
}

/// Submits two runs, and waits for the second before the first.
///
/// # Safety
/// The executor takes two; operands are live.
unsafe fn submit_two(
    host: &Host,
    executor: *mut c_void,
    first: &RunArgs,
    second: &RunArgs,
) -> Result<(), Box<AneError>> {
    let (shim, mut tickets, mut outcome) = (host.shim, [0; 2], Ok(()));
    for (ticket, args) in tickets.iter_mut().zip([first, second]) {
        if outcome.is_ok() {
            // SAFETY: the caller's promise.
            outcome = create(|e| unsafe { (shim.executor_submit)(executor, args, ticket, e) });
        }
    }
    for ticket in tickets.into_iter().rev().filter(|ticket| *ticket != 0) {
        let mut info = RunInfo::default();
        // SAFETY: the executor gave the ticket.
        let ended = create(|e| unsafe { (shim.executor_wait)(executor, ticket, u64::MAX, &mut info, e) });
        outcome = outcome.and(ended);
    }
    outcome
}

struct Operands {
    a: Matrix,
    b: Matrix,
    bias: Matrix,
    residual: Matrix,
}

impl Case {
    fn rows(&self) -> usize {
        self.rows.unwrap_or(self.m)
    }

    fn operands(&self) -> Operands {
        let mut random = Random(self.seed);
        let Self { batch, n, k, data, .. } = *self;
        let m = self.rows();
        let (ar, ac) = if self.transpose_a { (k, m) } else { (m, k) };
        let (br, bc) = if self.transpose_b { (n, k) } else { (k, n) };
        let extra = if self.transpose_a { self.m - m } else { 0 };
        let a = Matrix::new(self.input, batch, ar, ac, self.padding[0] + extra, false).fill(
            batch,
            data,
            &mut random,
        );
        let b = Matrix::new(self.input, batch, br, bc, self.padding[1], self.shared_b).fill(
            batch,
            data,
            &mut random,
        );
        let bias_type = self.bias.unwrap_or(element::F32);
        let bias_len = if self.bias.is_some() { n } else { 0 };
        let bias = Matrix::new(bias_type, 1, 1, bias_len, 0, true).fill(1, data, &mut random);
        let residual_rows = if self.residual { m } else { 0 };
        let residual = Matrix::new(self.output, batch, residual_rows, n, self.padding[3], false).fill(
            batch,
            data,
            &mut random,
        );
        Operands { a, b, bias, residual }
    }

    fn desc(&self, operands: &Operands, c: &Matrix) -> Desc {
        let set = |on: bool, bit: u32| if on { bit } else { 0 };
        Desc {
            struct_size: size_of::<Desc>() as u32,
            flags: set(self.transpose_a, flag::TRANSPOSE_A)
                | set(self.transpose_b, flag::TRANSPOSE_B)
                | set(self.bias.is_some(), flag::BIAS)
                | set(self.residual, flag::RESIDUAL)
                | set(self.rows.is_some(), flag::VARIABLE_M),
            batch: self.batch as u64,
            m: self.m as u64,
            n: self.n as u64,
            k: self.k as u64,
            lda: operands.a.ld as u64,
            ldb: operands.b.ld as u64,
            ldc: c.ld as u64,
            ld_residual: operands.residual.ld as u64,
            stride_a: operands.a.stride as u64,
            stride_b: operands.b.stride as u64,
            stride_c: c.stride as u64,
            stride_residual: operands.residual.stride as u64,
            type_a: self.input,
            type_b: self.input,
            type_accumulator: element::F32,
            type_c: self.output,
            type_bias: self.bias.unwrap_or(0),
            type_scale: 0,
            activation: self.activation,
            alpha: self.alpha,
            quantisation: [0; 8],
            reserved: [0; 3],
        }
    }

    /// Runs the case under every schedule given; all must agree bit for bit.
    ///
    /// # Errors
    /// A sentence: the checker's report, or the element that is wrong.
    pub fn run(&self, kernels: &Kernels, schedules: &[Schedule]) -> Result<Outcome, String> {
        let mut operands = self.operands();
        let blank = Matrix::new(self.output, self.batch, self.rows(), self.n, self.padding[2], false);
        let desc = self.desc(&operands, &blank);
        let plan = plan(kernels, &desc, self.rows() as u64, self.device_class, self.overrides);
        let mut first: Option<Matrix> = None;
        let mut counts = Counts::default();
        for &schedule in schedules {
            let mut c = blank.clone();
            let mut scratch = Memory::uninitialised(plan.scratch_bytes as usize);
            for i in 0..plan.launch_count as usize {
                let done = self
                    .launch(kernels, &plan, i, &mut operands, &mut c.memory, &mut scratch, schedule)
                    .map_err(|e| format!("{self} in {schedule:?}: {e}"))?;
                counts.accesses += done.accesses;
                counts.barriers += done.barriers;
                counts.threadgroup_bytes = counts.threadgroup_bytes.max(done.threadgroup_bytes);
                let declared = plan.launches[i].threadgroup_bytes;
                if done.threadgroup_bytes != declared {
                    return Err(format!(
                        "{}: the plan says {declared} bytes of threadgroup memory, the kernel declares {}",
                        plan.launches[i].function(),
                        done.threadgroup_bytes
                    ));
                }
            }
            match &first {
                None => {
                    self.check(&operands, &c).map_err(|e| format!("{self} in {schedule:?}: {e}"))?;
                    first = Some(c);
                }
                Some(expected) if expected.memory.bytes != c.memory.bytes => {
                    return Err(format!("{self}: the result depends on the schedule ({schedule:?})"));
                }
                Some(_) => {}
            }
        }
        Ok(Outcome { plan, counts })
    }

    /// Runs the case through the C ABI, with operands passed as `passing` says.
    ///
    /// # Errors
    /// A sentence: the shim's error, or the element that is wrong.
    ///
    /// # Safety
    /// `device` is open, and was opened by the shim of `host`.
    pub unsafe fn run_shim(&self, host: &Host, device: *mut c_void, passing: Passing) -> Result<(), String> {
        let mut operands = self.operands();
        let mut c = Matrix::new(self.output, self.batch, self.rows(), self.n, self.padding[2], false);
        let mut desc = self.desc(&operands, &c);
        // A pattern of NaN that no kernel writes.
        let blank = 0xfdu8;
        c.memory.bytes.fill(blank);
        let constant_b = passing == Passing::ConstantB && self.rows() == self.m;
        if constant_b {
            desc.flags |= flag::CONSTANT_B;
        }
        let text = |e: Box<AneError>| format!("{self} by {passing:?}: status {}: {}", e.status, e.message());
        let flags = if self.allow_known_faults { ALLOW_KNOWN_FAULTS } else { 0 };
        let (shim, options) = (host.shim, Options { flags, ..Options::default() });
        let constants = Constants::new(constant_b.then_some(operands.b.memory.bytes.as_slice()));
        let (mut product, mut executor) = (null_mut(), null_mut());
        // SAFETY: every pointer is to a live value of the header's type; objects are destroyed below.
        create(|e| unsafe { (shim.supports)(device, &desc, &options, e) }).map_err(text)?;
        // SAFETY: as above.
        create(|e| unsafe { (shim.compile)(device, &desc, &constants, &options, &mut product, e) })
            .map_err(text)?;
        // SAFETY: as above.
        let made = create(|e| unsafe {
            (shim.executor_create)(product, &ExecutorOptions::depth(2), &mut executor, e)
        });
        let mut info = RunInfo::default();
        let mut outcome = made.map_err(text);
        // Twice: the second run must not see anything of the first. On buffers the second are two submissions.
        for round in 0..2 {
            if outcome.is_err() {
                break;
            }
            c.memory.bytes.fill(blank);
            let mut lent = Lent { host, device, passing, buffers: Vec::new() };
            let absent = |m: &Matrix| m.memory.bytes.is_empty();
            let bias =
                if self.bias.is_none() { Operand::NONE } else { lent.lend(&mut operands.bias.memory.bytes) };
            let residual = if !self.residual || absent(&operands.residual) {
                Operand::NONE
            } else {
                lent.lend(&mut operands.residual.memory.bytes)
            };
            let args = RunArgs {
                struct_size: size_of::<RunArgs>() as u32,
                flags: 0,
                m: self.rows() as u64,
                a: lent.lend(&mut operands.a.memory.bytes),
                b: if constant_b { Operand::NONE } else { lent.lend(&mut operands.b.memory.bytes) },
                bias,
                residual,
                c: lent.lend(&mut c.memory.bytes),
                info: &mut info,
            };
            if round == 0 || !passing.in_buffers() {
                // SAFETY: operands point to live memory of the lengths given.
                outcome = create(|e| unsafe { (shim.executor_run)(executor, &args, e) }).map_err(text);
                lent.fetch(&args.c, &mut c.memory.bytes);
            } else {
                let mut other = c.memory.bytes.clone();
                let first = RunArgs { info: null_mut(), ..args };
                let second = RunArgs { c: lent.lend(&mut other), info: null_mut(), ..args };
                // SAFETY: as above; both are waited for before their memory goes.
                outcome = unsafe { submit_two(host, executor, &first, &second) }.map_err(text);
                lent.fetch(&first.c, &mut c.memory.bytes);
                lent.fetch(&second.c, &mut other);
                if outcome.is_ok() && other != c.memory.bytes {
                    outcome = Err(format!("{self} by {passing:?}: two submissions give different results"));
                }
            }
            lent.give_back();
        }
        // SAFETY: made above, in this order; NULL is accepted.
        unsafe {
            (shim.executor_destroy)(executor);
            (shim.product_destroy)(product);
        }
        outcome?;
        // What differs from the pattern counts as written: an element may hold it by chance only.
        for (written, byte) in c.memory.initialised.iter_mut().zip(&c.memory.bytes) {
            *written = u8::from(*byte != blank);
        }
        let size = size_of_type(self.output);
        for item in 0..self.batch {
            for row in 0..self.rows() {
                for col in 0..self.n {
                    let range = c.range(item, row, col);
                    if c.memory.bytes[range.clone()] == vec![blank; size][..] {
                        return Err(format!(
                            "{self} by {passing:?}: C[{item}][{row}][{col}] was not written"
                        ));
                    }
                    c.memory.initialised[range].fill(1);
                }
            }
        }
        self.check(&operands, &c).map_err(|e| format!("{self} by {passing:?}: {e}"))
    }

    #[allow(clippy::too_many_arguments, reason = "a launch has that many sides")]
    fn launch(
        &self,
        kernels: &Kernels,
        plan: &Plan,
        index: usize,
        operands: &mut Operands,
        c: &mut Memory,
        scratch: &mut Memory,
        schedule: Schedule,
    ) -> Result<Counts, String> {
        let (a, b) = match plan.swap_operands {
            0 => (&mut operands.a.memory, &mut operands.b.memory),
            _ => (&mut operands.b.memory, &mut operands.a.memory),
        };
        let splits = plan.launch_count == 2;
        let mut bindings: [Binding; 6] = [
            if index == 1 { scratch.bind(0) } else { a.bind(0) },
            if index == 1 { Binding::NONE } else { b.bind(0) },
            if splits && index == 0 { scratch.bind(0) } else { c.bind(0) },
            operands.bias.memory.bind(0),
            operands.residual.memory.bind(0),
            Binding::NONE,
        ];
        let mut counts = Counts::default();
        for launch in parts(kernels, plan, index) {
            let mut params = Memory::with(launch.params.bytes());
            bindings[5] = params.bind(0);
            let name = launch.function();
            let done = kernels
                .dispatch(&name, &launch.constants, &bindings, launch.grid, launch.threads, schedule)
                .map_err(|report| format!("{name}: {report}"))?;
            counts.accesses += done.accesses;
            counts.barriers += done.barriers;
            counts.threadgroup_bytes = counts.threadgroup_bytes.max(done.threadgroup_bytes);
        }
        Ok(counts)
    }

    fn check(&self, operands: &Operands, c: &Matrix) -> Result<(), String> {
        let u = unit_roundoff(element::F32);
        let u_out = unit_roundoff(self.output);
        // The terms that one element sums, then alpha, bias and residual.
        let gamma = |k: f64| k * u / (1.0 - k * u);
        let mut covered = vec![0u8; c.memory.bytes.len()];
        for item in 0..self.batch {
            for row in 0..self.rows() {
                for col in 0..self.n {
                    covered[c.range(item, row, col)].fill(1);
                    let (mut sum, mut size) = (0f64, 0f64);
                    for i in 0..self.k {
                        let (ar, ac) = if self.transpose_a { (i, row) } else { (row, i) };
                        let (br, bc) = if self.transpose_b { (col, i) } else { (i, col) };
                        let term = operands.a.get(item, ar, ac) * operands.b.get(item, br, bc);
                        sum += term;
                        size += term.abs();
                    }
                    let alpha = f64::from(self.alpha);
                    let (mut x, mut size) = (alpha * sum, (alpha * size).abs());
                    if self.bias.is_some() {
                        let bias = operands.bias.get(0, 0, col);
                        x += bias;
                        size += bias.abs();
                    }
                    if self.residual {
                        let residual = operands.residual.get(item, row, col);
                        x += residual;
                        size += residual.abs();
                    }
                    let (expected, slope, added) = activate(self.activation, x);
                    let got = c.get(item, row, col);
                    let same = got == expected || (got.is_nan() && expected.is_nan());
                    let exact = self.data == Data::Integers
                        && self.activation < 2
                        && self.output == element::F32
                        && self.alpha.abs() == 1.0;
                    let tiny = if self.output == element::F16 { 2f64.powi(-24) } else { 2f64.powi(-126) };
                    let bound = if exact {
                        0.0
                    } else {
                        let before = slope * gamma(self.k as f64 + 3.0) * size + added;
                        before + u_out * (expected.abs() + before) + tiny
                    };
                    // Infinite and NaN bounds would accept anything.
                    let close = expected.is_finite() && got.is_finite() && (got - expected).abs() <= bound;
                    if !same && !close {
                        return Err(format!(
                            "C[{item}][{row}][{col}] is {got}, not {expected} within {bound:e}"
                        ));
                    }
                }
            }
        }
        match covered.iter().zip(&c.memory.initialised).position(|(a, b)| a != b) {
            Some(byte) => Err(format!("byte {byte} of C: written although not of C, or not written")),
            None => Ok(()),
        }
    }
}
