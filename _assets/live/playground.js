// The playground: data points to drag, the law of infinitely wide networks, and some of finite width trained beside it.

const TWO_PI = 2 * Math.PI
const STAGES = {
  line: { x: [-2, 2], xLabel: "input x", xTicks: [-2, -1, 0, 1, 2].map(v => [v, String(v).replace("-", "−")]), input: x => [x] },
  circle: { x: [0, TWO_PI], xLabel: "angle on the circle", xTicks: [[0, "0"], [Math.PI / 2, "π/2"], [Math.PI, "π"], [3 * Math.PI / 2, "3π/2"], [TWO_PI, "2π"]],
    input: angle => [Math.cos(angle), Math.sin(angle)] }
}
const MOST_POINTS = 40, GRID = 201, HIGH = 2 // of the stage
const START = { stage: "line", points: "sine", depth: 1, activation: "relu", bStd: 0.5, width: 256, members: 5, rate: 0.5, time: 2, end: false, frozen: false, seed: 0 }
const SNAPSHOTS = 120

const evenly = (n, [low, high]) => Array.from({ length: n }, (_, i) => low + (high - low) * (i + 0.5) / n)

// Data sets by name, as functions of the range of inputs.
const DATA = {
  sine: range => evenly(9, range).map(x => [x, Math.sin(2 * Math.PI * (x - range[0]) / (range[1] - range[0]) * 1.5)]),
  step: range => evenly(10, range).map((x, i) => [x, i < 5 ? -1 : 1]),
  gap: ([low, high]) => [0.06, 0.12, 0.18, 0.24, 0.76, 0.82, 0.88, 0.94].map((part, i) => [low + part * (high - low), [0.2, 0.9, 0.4, -0.3, 0.5, -0.6, -0.2, 0.7][i]]),
  waves: range => evenly(24, range).map(x => {
    const angle = TWO_PI * (x - range[0]) / (range[1] - range[0])
    return [x, [1, 2, 3, 4, 5, 6, 7].reduce((sum, k) => sum + Math.sin(k * angle + k * k), 0) / 4]
  }),
  one: ([low, high]) => [[low + 0.6 * (high - low), 1]],
  none: () => []
}
const DATA_NAMES = [["sine", "a sine"], ["step", "a step"], ["gap", "two clusters, a gap"], ["waves", "seven waves"], ["one", "one point"], ["none", "draw your own"]]

const rounded = value => Number(value.toPrecision(4))
const numberText = value => (value === 0 ? "0" : value >= 1000 ? Math.round(value).toLocaleString("en") : value < 0.001 ? value.toExponential(1) : String(Number(value.toPrecision(2))))

// The state in the address: every setting that is not that of the start, and the points.
function toFragment(state) {
  const parts = Object.keys(START).filter(key => key !== "points" && state[key] !== START[key]).map(key => `${key}=${state[key]}`)
  if (state.data !== START.points) parts.push(state.data ? `data=${state.data}` : `points=${state.points.map(p => p.map(v => v.toFixed(2)).join(",")).join(";")}`)
  return `#play:${parts.join("&")}`
}

// What a fragment says; null where it is none of ours. What is not understood is left out, with a word about it.
function fromFragment(fragment) {
  if (!fragment.startsWith("#play:")) return null
  const given = new URLSearchParams(fragment.slice(6)), state = {}, unknown = []
  const ranges = { depth: [1, 4], bStd: [0, 2], width: [2, 4096], members: [1, 20], rate: [0.01, 2], time: [-1, 5], seed: [0, 1e9] }
  const words = { stage: Object.keys(STAGES), activation: ["relu", "erf"], end: ["true", "false"], frozen: ["true", "false"], data: Object.keys(DATA) }
  for (const [key, value] of given) {
    const number = Number(value)
    if (ranges[key] && value !== "" && number >= ranges[key][0] && number <= ranges[key][1]) state[key] = number
    else if (words[key]?.includes(value)) state[key] = value === "true" ? true : value === "false" ? false : value
    else if (key === "points") state.points = value.split(";").map(pair => pair.split(",").map(Number)).filter(pair => pair.length === 2 && pair.every(Number.isFinite)).slice(0, MOST_POINTS)
    else unknown.push(key)
  }
  return { state, unknown }
}

function playground(root) {
  const state = { ...START }
  let points = [], law = null, run = null, runs = [], playing = false, notice = ""

  // --- the picture, from back to front
  const narrow = root.clientWidth < 500
  const plot = new Plot("Data points, the law of infinitely wide networks, and finite networks", { width: narrow ? 380 : 640, x: STAGES.line.x, y: [-HIGH, HIGH], xLabel: STAGES.line.xLabel, xTicks: STAGES.line.xTicks, yLabel: "output" })
  const band = plot.curve("band"), members = plot.inside.appendChild(element("svg:g")), end = plot.curve("end"), mean = plot.curve("mean")
  const dots = plot.root.appendChild(element("svg:g"))
  const bars = new Plot("How much of each mode has been learned", { x: [0, 1], y: [0, 1], width: 320, height: 180, yTicks: [0, 1], xLabel: "modes, fastest first", yLabel: "learned" })
  const scatter = new Plot("Distance between network and infinite width, for each run", { x: [2, 4096], y: [-3, 0.5], width: 320, height: 180, left: 60, log: true,
    xTicks: [[4, "4"], [32, "32"], [256, "256"], [2048, "2048"]], yTicks: [], xLabel: "width", yLabel: "distance" })
  for (const power of [-3, -2, -1, 0]) scatter.axes.append(element("svg:text", { x: 54, y: scatter.toY(power) + 4, "text-anchor": "end" }, String(10 ** power)))
  const status = element("p", { class: "live-status" }), numbers = element("p", { class: "live-numbers", role: "status" }) // the latter is said aloud

  // --- settings
  const change = (what, retrain = true) => { Object.assign(state, what); if (retrain) restart(); else draw(); remember() }
  const controls = {
    stage: choice("Stage", [["line", "a line"], ["circle", "the circle"]], state.stage, stage => { setData(state.data ?? "sine", stage) }),
    data: choice("Data", DATA_NAMES, "sine", data => setData(data, state.stage)),
    depth: slider("Hidden layers", { min: 1, max: 4, step: 1, value: state.depth, onchange: depth => change({ depth }) }),
    activation: choice("Activation", [["relu", "ReLU"], ["erf", "erf"]], state.activation, activation => change({ activation })),
    bStd: slider("Bias", { min: 0, max: 2, step: 0.1, value: state.bStd, onchange: bStd => change({ bStd: rounded(bStd) }) }),
    width: slider("Width", { min: 1, max: 12, step: 1, value: Math.log2(state.width), text: v => String(2 ** v), onchange: v => change({ width: 2 ** v }) }),
    members: slider("Networks", { min: 1, max: 20, step: 1, value: state.members, onchange: members => change({ members }) }),
    rate: slider("Learning rate", { min: 0.05, max: 1.5, step: 0.05, value: state.rate, text: v => `${rounded(v)} of the stability bound${v >= 1 ? ": unstable" : ""}`, onchange: rate => change({ rate: rounded(rate) }) }),
    time: slider("Training time", { min: -1, max: 5, step: 0.05, value: state.time, text: v => numberText(10 ** v), onchange: time => { playing = false; change({ time: rounded(time) }, false); wake() } }),
    end: toggle("Show the end of training (kernel regression)", state.end, value => change({ end: value }, false)),
    frozen: toggle("Freeze the kernel (linearized networks)", state.frozen, frozen => change({ frozen }))
  }
  const play = button("Play", () => { playing = true; state.time = -1; runAgain() })
  const buttons = element("div", { class: "live-buttons" },
    button("New networks", () => change({ seed: state.seed + 1 })),
    button("Remove a point", () => { if (points.length) setPoints(points.slice(0, -1)) }),
    button("Add a point", () => addPoint(freePlace())),
    button("Forget the runs", () => { runs = []; drawScatter() }),
    button("Start over", () => { runs = []; apply({ ...START }) }))

  // --- data points: dragged, added by a double click, removed by Delete
  const range = () => STAGES[state.stage].x
  const freePlace = () => {
    const taken = [range()[0], ...points.map(([x]) => x).sort((a, b) => a - b), range()[1]]
    const widest = taken.slice(1).map((x, i) => [x - taken[i], i]).sort((a, b) => b[0] - a[0])[0][1]
    return [(taken[widest] + taken[widest + 1]) / 2, 0]
  }
  const addPoint = point => { if (points.length < MOST_POINTS) setPoints([...points, point]); else { notice = `No more than ${MOST_POINTS} points fit here.`; draw() } }
  const onStage = ([x, y]) => [Math.min(range()[1], Math.max(range()[0], x)), Math.min(HIGH, Math.max(-HIGH, y))]
  plot.root.addEventListener("dblclick", event => { if (event.target.tagName !== "circle") addPoint(onStage(plot.at(event))) })

  function setPoints(moved, data = null) {
    points = moved.map(onStage)
    state.data = data
    controls.data.value = data ?? "none"
    drawDots()
    restart()
    remember()
  }

  function setData(data, stage) {
    state.stage = controls.stage.value = stage
    const { x, xLabel, xTicks } = STAGES[stage]
    Object.assign(plot, { x })
    Object.assign(plot.labels, { xLabel, xTicks })
    plot.drawAxes()
    setPoints(DATA[data](x), data)
  }

  function drawDots() {
    while (dots.childElementCount > points.length) dots.lastChild.remove()
    while (dots.childElementCount < points.length) dots.append(dot(dots.childElementCount))
    points.forEach(([x, y], i) => set(dots.children[i], { cx: plot.toX(x), cy: plot.toY(y), "aria-valuenow": y.toFixed(2), "aria-valuetext": `input ${x.toFixed(2)}, output ${y.toFixed(2)}`, "aria-label": `Data point ${i + 1} of ${points.length}` }))
  }

  function dot(i) {
    const move = place => { points[i] = onStage(place); state.data = null; controls.data.value = "none"; drawDots(); restart(); remember() }
    const circle = element("svg:circle", { r: 8, class: "live-dot", tabindex: 0, role: "slider", "aria-valuemin": -HIGH, "aria-valuemax": HIGH,
      onpointerdown: event => { event.preventDefault(); circle.setPointerCapture(event.pointerId); circle.focus() },
      onpointermove: event => { if (circle.hasPointerCapture(event.pointerId)) move(plot.at(event)) },
      ondblclick: event => { event.stopPropagation(); setPoints(points.filter((_, j) => j !== i)) },
      onkeydown: event => {
        const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key]
        if (steps) move([points[i][0] + steps[0] * (range()[1] - range()[0]) / 100, points[i][1] + steps[1] / 25])
        else if (["Delete", "Backspace"].includes(event.key)) { setPoints(points.filter((_, j) => j !== i)); dots.children[Math.min(i, points.length - 1)]?.focus() }
        else return
        event.preventDefault()
      } })
    return circle
  }

  // --- infinite width
  function solve() {
    const { input } = STAGES[state.stage], xs = Array.from({ length: GRID }, (_, i) => range()[0] + (range()[1] - range()[0]) * i / (GRID - 1))
    const network = { depth: state.depth, activation: state.activation, bStd: state.bStd }, x = points.map(point => input(point[0])), grid = xs.map(input)
    const train = kernel(x, x, network), cross = kernel(grid, x, network), spectrum = factored(train.ntk)
    const variances = grid.map(g => kernel([g], [g], network).nngp[0][0])
    law = { xs, x, grid, network, y: points.map(point => point[1]), kernels: { train, cross, variances }, spectrum, fastest: Math.max(...spectrum.values, 0) }
    law.bound = law.fastest ? 2 * points.length / law.fastest : 1
  }

  // --- finite width: trained to the present time in slices, with pictures kept on the way
  function restart() {
    solve()
    runAgain()
  }

  function runAgain() {
    const { x, y, grid, network, bound } = law, rate = state.rate * bound
    run = { rate, snapshots: [], taking: null, next: 0, failed: false, counted: false }
    if (points.length) {
      run.ensemble = new Ensemble(x, y, grid, { ...network, width: state.width, members: state.members, seed: state.seed, linearized: state.frozen })
      run.starts = run.ensemble.onTrain.map(f => [...f])
    }
    draw()
    wake()
  }

  const time = () => 10 ** state.time
  const goal = () => Math.round(time() / run.rate)

  // A few milliseconds of work: steps, or where a picture is due, one network's function for it. Whether there is more.
  function work(until) {
    const { ensemble, rate } = run
    while (ensemble && !run.failed && (run.taking || ensemble.steps < goal() || run.next === 0)) {
      if (performance.now() > until) return true
      if (run.taking) take()
      else {
        const next = Math.min(run.next, goal())
        if (ensemble.steps < next) ensemble.advance(rate, next - ensemble.steps, until - performance.now())
        if (ensemble.steps >= next) run.taking = []
      }
    }
    return false
  }

  function take() {
    const { ensemble, taking } = run, f = ensemble.memberOnGrid(taking.length)
    run.failed ||= f.some(value => !(Math.abs(value) < 1e3))
    taking.push(Float64Array.from(f))
    if (taking.length < state.members) return
    run.snapshots.push({ steps: ensemble.steps, f: taking })
    run.next = Math.max(ensemble.steps + 1, Math.ceil(ensemble.steps * 10 ** (6 / SNAPSHOTS)))
    run.taking = null
  }

  const wake = animated(root, () => {
    if (playing) {
      state.time = Math.min(5, state.time + 0.02)
      controls.time.value = state.time
      playing = state.time < 5
    }
    const more = work(performance.now() + 10)
    draw()
    return playing || more
  })

  // --- what is seen
  function draw() {
    const t = time(), seen = `${t} ${state.end}`
    if (law.seen !== seen) drawLaw(t)
    law.seen = seen
    drawMembers(law.xs)
    drawNumbers(t)
  }

  function drawLaw(t) {
    const { xs, kernels, y, spectrum } = law
    const now = points.length ? lawAt(kernels, y, t) : { mean: xs.map(() => 0), variance: kernels.variances }
    const reach = now.variance.map(v => 1.645 * Math.sqrt(v))
    set(mean, { d: plot.path(xs, now.mean) })
    set(band, { d: plot.band(xs, now.mean.map((m, i) => m - reach[i]), now.mean.map((m, i) => m + reach[i])) })
    set(end, { d: state.end && points.length ? plot.path(xs, lawAt(kernels, y, Infinity).mean) : "" })
    drawBars(spectrum, t)
  }

  function drawMembers(xs) {
    const shown = run.snapshots.filter(s => s.steps <= goal()).pop()?.f ?? []
    while (members.childElementCount > shown.length) members.lastChild.remove()
    while (members.childElementCount < shown.length) members.append(element("svg:path", { class: "live-member" }))
    shown.forEach((f, i) => set(members.children[i], { d: plot.path(xs, f) }))
  }

  function drawBars({ values }, t) {
    const n = values.length
    while (bars.inside.childElementCount > n) bars.inside.lastChild.remove()
    while (bars.inside.childElementCount < n) bars.inside.append(element("svg:rect", { class: "live-bar" }))
    values.forEach((value, i) => {
      const learned = -Math.expm1(-value * t / n), x0 = bars.toX((n - 1 - i) / n), x1 = bars.toX((n - i) / n)
      set(bars.inside.children[i], { x: x0 + 1, width: Math.max(1, x1 - x0 - 2), y: bars.toY(learned), height: bars.toY(0) - bars.toY(learned) })
    })
  }

  // Root mean square over the stage, the median over the networks: from the flow that starts where the network does.
  function distances(t) {
    const last = run.snapshots[run.snapshots.length - 1].f, first = run.snapshots[0].f, y = law.y
    const apart = until => {
      const matrix = flowMatrix(law.spectrum, until)
      const sizes = last.map((f, s) => {
        const weights = times(matrix, y.map((target, i) => target - run.starts[s][i])), flowed = times(law.kernels.cross.ntk, weights)
        return Math.sqrt(flowed.reduce((sum, value, i) => sum + (f[i] - first[s][i] - value) ** 2, 0) / f.length)
      }).sort((a, b) => a - b)
      return sizes[Math.floor(sizes.length / 2)]
    }
    return { now: apart(t), end: apart(Infinity) }
  }

  function drawNumbers(t) {
    const { ensemble, failed } = run, done = ensemble && !failed && !run.taking && run.snapshots.length > 0 && ensemble.steps >= goal()
    status.textContent = [statusText(t, done), notice].join(" ")
    if (!done) { if (!ensemble) numbers.textContent = ""; return }
    const apart = distances(t)
    numbers.textContent = `Distance of a network from infinite width: ${numberText(apart.now)} at the same time, ${numberText(apart.end)} at the end of training.`
    if (!run.counted && !playing && !state.frozen) { run.counted = true; runs.push([state.width, apart.now]); drawScatter() }
  }

  function statusText(t, done) {
    const { ensemble, failed, rate } = run
    if (!ensemble) return "No data yet: double-click the picture, or press “Add a point”. The band is where untrained networks are."
    if (failed) return `Diverged after ${ensemble.steps} steps: the learning rate is ${state.rate >= 1 ? "beyond" : "too close to"} the stability bound. Training has stopped; lower the rate.`
    if (!done) return `Training: time ${numberText(ensemble.steps * rate)} of ${numberText(t)}, ${ensemble.steps} steps.`
    if (coinciding()) return "Two points coincide with different targets: no function fits both, and the mode of their difference is never learned."
    return `Trained to time ${numberText(t)}: ${goal()} steps of ${numberText(rate)}.`
  }

  const coinciding = () => points.some(([x, y], i) => points.some(([u, v], j) => j < i && Math.abs(x - u) < 1e-9 && Math.abs(y - v) > 1e-3))

  function drawScatter() {
    scatter.inside.replaceChildren(...runs.map(([width, distance]) => element("svg:circle", { r: 4, class: "live-run", cx: scatter.toX(width), cy: scatter.toY(Math.log10(Math.max(1e-3, distance))) })))
  }

  // --- the address
  let remembering = null
  function remember() {
    notice = ""
    clearTimeout(remembering)
    remembering = setTimeout(() => history.replaceState(null, "", toFragment({ ...state, points })), 300)
  }

  function apply(wanted, unknown = []) {
    Object.assign(state, wanted)
    for (const [key, control] of Object.entries(controls)) if (key in state && key !== "data") control.value = key === "width" ? Math.log2(state.width) : state[key]
    const data = wanted.data ?? (wanted.points && wanted.points !== START.points ? null : "sine"), given = wanted.points
    setData(data ?? "none", state.stage)
    if (!data) setPoints(given)
    notice = unknown.length ? `The address has settings that are not known here: ${unknown.join(", ")}.` : ""
    draw()
  }

  const follow = () => { const found = fromFragment(location.hash); if (found) apply({ ...START, ...found.state, points: found.state.points ?? START.points }, found.unknown) }
  addEventListener("hashchange", follow)

  root.append(
    plot.root, element("div", { class: "live-buttons live-clock" }, play, controls.time.root), status, numbers,
    element("div", { class: "live-controls" }, ...Object.values(controls).filter(c => c !== controls.time).map(c => c.root)), buttons,
    element("div", { class: "live-pair" },
      element("figure", {}, bars.root, element("figcaption", {}, "The share of each mode that infinite width has learned.")),
      element("figure", {}, scatter.root, element("figcaption", {}, "One dot for each run that has arrived: distance at the same time."))))
  apply({ ...START })
  follow()
}
