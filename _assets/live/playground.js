// The playground: data points to drag, the law of infinitely wide networks, and some of finite width trained beside it.

const SNAPSHOTS = 120 // over six decades of steps
const LAST_OF_PLAY = 3 // decimal logarithm of the time
const REACH = 24 // pixels of the screen from a point that still take hold of it
const SNAP = 4 // pixels of the screen from another point's input that become that input

function playground(root) {
  const state = { ...START }
  let points = [], law = null, run = null, runs = [], playing = null, notice = "" // playing: the time of the last frame

  // --- the picture, from back to front
  const narrow = root.clientWidth < 500
  const plot = new Plot("Data points, infinitely wide networks, and finite ones", { width: narrow ? 380 : 640, y: [-HIGH, HIGH], yLabel: "output", ...STAGES.line })
  const band = plot.curve("band"), members = plot.inside.appendChild(element("svg:g")), end = plot.curve("end"), mean = plot.curve("mean")
  const dots = plot.root.appendChild(element("svg:g"))
  const bars = new Plot("How much of each mode has been learned", { x: [0, 1], y: [0, 1], width: 320, height: 170, yTicks: [0, 1], xLabel: "modes, first learned first", yLabel: "learned" })
  const scatter = new Plot("Distance of each run against its width", { x: [1.4, 6000], y: [-3, 0.5], width: 320, height: 170, left: 60, log: true,
    xTicks: [[2, "2"], [16, "16"], [128, "128"], [1024, "1024"]], yTicks: [], xLabel: "width", yLabel: "distance" })
  for (const power of [-3, -2, -1, 0]) scatter.axes.append(element("svg:text", { x: 54, y: scatter.toY(power) + 4, "text-anchor": "end" }, String(10 ** power)))
  const status = element("p", { class: "live-status" }), numbers = element("p", { class: "live-numbers", role: "status" }) // the latter is said aloud
  const real = element("span")
  const legend = element("p", { class: "live-legend" }, ...[["dot", "data: drag it"], ["mean", "infinitely wide networks, on average"], ["band", "where 90 % of them are"], ["member", real], ["end", "after infinite time"]]
    .map(([name, text]) => element("span", { class: `live-key live-key-${name}` }, text)))

  // --- settings
  const change = (what, retrain = true) => { Object.assign(state, what); notice = ""; if (retrain) restart(); else draw(); remember() }
  const controls = {
    data: choice("Data", DATA_NAMES, state.points, data => { stop(); setData(data, state.stage) }),
    width: slider("Width", { min: 1, max: 12, step: 1, value: Math.log2(state.width), text: v => String(2 ** v), onchange: v => change({ width: 2 ** v }) }),
    rate: slider("Learning rate", { min: 0.05, max: 1.5, step: 0.05, value: state.rate, text: v => `${rounded(v)} × bound`, onchange: rate => change({ rate: rounded(rate) }) }),
    frozen: toggle("Linearize the networks: their kernel stays as it was at the start", state.frozen, frozen => change({ frozen })),
    stage: choice("Inputs", [["line", "on a line"], ["circle", "on a circle"]], state.stage, stage => { stop(); setData(state.data ?? START.points, stage) }),
    depth: slider("Hidden layers", { min: 1, max: 4, step: 1, value: state.depth, onchange: depth => change({ depth }) }),
    activation: choice("Activation", [["relu", "ReLU"], ["erf", "erf"]], state.activation, activation => change({ activation })),
    bStd: slider("Size of biases", { min: 0, max: 2, step: 0.1, value: state.bStd, onchange: bStd => change({ bStd: rounded(bStd) }) }),
    members: slider("Networks", { min: 1, max: 20, step: 1, value: state.members, onchange: members => change({ members }) }),
    end: toggle("Show where training ends (kernel regression)", state.end, value => change({ end: value }, false))
  }
  const clock = slider("Training time", { min: -1, max: 5, step: 0.05, value: state.time, text: v => numberText(10 ** v), onchange: time => { stop(); change({ time: rounded(time) }, false); wake() } })
  const play = button("Play", () => (playing === null ? start() : stop()))
  const buttons = element("div", { class: "live-buttons" },
    button("New networks", () => change({ seed: state.seed + 1 })),
    button("Add a point", () => addPoint(freePlace())),
    button("Remove a point", () => { if (points.length) setPoints(points.slice(0, -1)) }),
    button("Clear the dots", () => { runs = []; drawScatter() }),
    button("Start over", () => { runs = []; apply({ ...START }); remember() }))
  const { data, width, rate, frozen, ...more } = controls, list = some => element("div", { class: "live-controls" }, ...Object.values(some).map(control => control.root))

  function start() {
    if (state.time >= LAST_OF_PLAY) setTime(-1)
    playing = performance.now()
    play.textContent = "Pause"
    wake()
  }

  function stop() {
    playing = null
    play.textContent = "Play"
  }

  function setTime(time) {
    state.time = clock.value = Math.min(LAST_OF_PLAY, time)
  }

  // --- data points: dragged, added by a double click, removed by Delete
  const range = () => STAGES[state.stage].x
  const freePlace = () => {
    const taken = [range()[0], ...points.map(([x]) => x).sort((a, b) => a - b), range()[1]]
    const widest = taken.slice(1).map((x, i) => [x - taken[i], i]).sort((a, b) => b[0] - a[0])[0][1]
    return [(taken[widest] + taken[widest + 1]) / 2, 0]
  }
  const addPoint = point => { if (points.length < MOST_POINTS) setPoints([...points, point]); else { notice = `No more than ${MOST_POINTS} points fit here.`; draw() } }
  const onStage = ([x, y]) => [Math.min(range()[1], Math.max(range()[0], x)), Math.min(HIGH, Math.max(-HIGH, y))]

  function setPoints(moved, data = null) {
    points = moved.map(onStage)
    state.data = data
    notice = ""
    controls.data.value = data ?? "none"
    drawDots()
    restart()
    remember()
  }

  function setData(data, stage) {
    showStage(stage)
    setPoints(DATA[data](range()), data)
  }

  function showStage(stage) {
    state.stage = controls.stage.value = stage
    plot.x = range()
    Object.assign(plot.labels, STAGES[stage])
    plot.drawAxes()
  }

  const moveTo = (i, place) => setPoints(points.map((point, j) => (j === i ? place : point)))

  // The point next to a place on the screen, if one is within reach.
  function nearest({ clientX, clientY }) {
    const apart = [...dots.children].map((dot, i) => {
      const { left, right, top, bottom } = dot.getBoundingClientRect()
      return [Math.hypot((left + right) / 2 - clientX, (top + bottom) / 2 - clientY), i]
    }).sort((a, b) => a[0] - b[0])
    return apart.length && apart[0][0] <= REACH ? apart[0][1] : null
  }

  let held = null
  plot.root.addEventListener("touchstart", event => { if (nearest(event.touches[0]) !== null) event.preventDefault() }, { passive: false })
  plot.root.addEventListener("pointerdown", event => {
    held = nearest(event)
    if (held === null) return
    event.preventDefault()
    plot.root.setPointerCapture(event.pointerId)
    dots.children[held].focus({ preventScroll: true })
  })
  plot.root.addEventListener("pointermove", event => {
    if (held === null) return
    const [x, y] = onStage(plot.at(event)), pixel = plot.at({ clientX: event.clientX + 1, clientY: event.clientY })[0] - plot.at(event)[0]
    const same = points.find(([u], j) => j !== held && Math.abs(u - x) < SNAP * pixel)
    moveTo(held, [same ? same[0] : x, y])
  })
  for (const over of ["pointerup", "pointercancel"]) plot.root.addEventListener(over, () => { held = null })
  plot.root.addEventListener("dblclick", event => {
    const i = nearest(event)
    if (i === null) addPoint(onStage(plot.at(event)))
    else setPoints(points.filter((_, j) => j !== i))
  })

  function drawDots() {
    while (dots.childElementCount > points.length) dots.lastChild.remove()
    while (dots.childElementCount < points.length) dots.append(dot(dots.childElementCount))
    points.forEach(([x, y], i) => set(dots.children[i], { cx: plot.toX(x), cy: plot.toY(y), "aria-valuenow": y.toFixed(2), "aria-valuetext": `input ${x.toFixed(2)}, output ${y.toFixed(2)}`, "aria-label": `Data point ${i + 1} of ${points.length}` }))
  }

  const dot = i => element("svg:circle", { r: 8, class: "live-dot", tabindex: 0, role: "slider", "aria-valuemin": -HIGH, "aria-valuemax": HIGH,
    onkeydown: event => {
      const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key]
      if (steps) moveTo(i, [points[i][0] + steps[0] * (range()[1] - range()[0]) / 100, points[i][1] + steps[1] / 25])
      else if (["Delete", "Backspace"].includes(event.key)) { setPoints(points.filter((_, j) => j !== i)); dots.children[Math.min(i, points.length - 1)]?.focus() }
      else return
      event.preventDefault()
    } })

  // --- infinite width
  function solve() {
    const { input } = STAGES[state.stage], xs = Array.from({ length: GRID }, (_, i) => range()[0] + (range()[1] - range()[0]) * i / (GRID - 1))
    const network = { depth: state.depth, activation: state.activation, bStd: state.bStd }, x = points.map(point => input(point[0])), grid = xs.map(input)
    const train = kernel(x, x, network), cross = kernel(grid, x, network), [spread, spectrum] = [train.nngp, train.ntk].map(factored)
    const variances = grid.map(g => kernel([g], [g], network).nngp[0][0]), fastest = Math.max(...spectrum.values, 0)
    law = { xs, x, grid, network, y: points.map(point => point[1]), kernels: { spread, spectrum, cross, variances }, bound: fastest ? 2 * points.length / fastest : 1 }
  }

  // --- finite width: trained to the present time in slices, with pictures kept on the way
  function restart() {
    solve()
    if (state.width > mostWidth(state.depth)) {
      state.width = mostWidth(state.depth)
      controls.width.value = Math.log2(state.width)
      notice = `Width ${state.width} is the largest for this depth.`
    }
    const { x, y, grid, network, bound } = law
    run = { rate: state.rate * bound, snapshots: [], taking: null, next: 0, failed: false, counted: false }
    if (points.length) {
      run.ensemble = new Ensemble(x, y, grid, { ...network, width: state.width, members: state.members, seed: state.seed, linearized: state.frozen })
      run.starts = run.ensemble.onTrain.map(f => [...f])
    }
    real.textContent = `${state.frozen ? "linearized" : "real"} networks of width ${state.width}`
    draw()
    wake()
  }

  const time = () => 10 ** state.time
  const goal = () => Math.round(time() / run.rate)
  const shown = () => run.snapshots.filter(snapshot => snapshot.steps <= goal()).pop()
  const arrived = () => shown()?.steps === goal()

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

  // While it plays, time waits for the networks.
  const wake = animated(root, () => {
    const more = work(performance.now() + 10), now = performance.now()
    if (playing !== null && !more) {
      setTime(state.time + Math.min(100, now - playing) / 1500)
      if (state.time >= LAST_OF_PLAY || run.failed) stop()
    }
    if (playing !== null) playing = now
    draw()
    return playing !== null || more || work(now) // of the new time
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
    const { xs, kernels, y } = law
    const now = points.length ? lawAt(kernels, y, t) : { mean: xs.map(() => 0), variance: kernels.variances }
    const reach = now.variance.map(v => 1.645 * Math.sqrt(v))
    set(mean, { d: plot.path(xs, now.mean) })
    set(band, { d: plot.band(xs, now.mean.map((m, i) => m - reach[i]), now.mean.map((m, i) => m + reach[i])) })
    set(end, { d: state.end && points.length ? plot.path(xs, lawAt(kernels, y, Infinity).mean) : "" })
    legend.lastChild.hidden = !state.end
    drawBars(kernels.spectrum, t)
  }

  function drawMembers(xs) {
    const functions = shown()?.f ?? []
    while (members.childElementCount > functions.length) members.lastChild.remove()
    while (members.childElementCount < functions.length) members.append(element("svg:path", { class: "live-member" }))
    functions.forEach((f, i) => set(members.children[i], { d: plot.path(xs, f) }))
    members.classList.toggle("live-late", !arrived())
  }

  function drawBars({ values }, t) {
    const n = values.length, [low, high] = [bars.toY(0), bars.toY(1)]
    bars.inside.replaceChildren(...values.flatMap((value, i) => {
      const learned = bars.toY(-Math.expm1(-value * t / n)), x0 = bars.toX((n - 1 - i) / n), place = { x: x0 + 1, width: Math.max(1, bars.toX((n - i) / n) - x0 - 2) }
      return [element("svg:rect", { class: "live-slot", ...place, y: high, height: low - high }), element("svg:rect", { class: "live-bar", ...place, y: learned, height: low - learned })]
    }))
  }

  // Root mean square over the stage, the median over the networks: from the flow that starts where the network does.
  function distance(t) {
    const { xs, y, kernels } = law, first = run.snapshots[0].f, matrix = flowMatrix(kernels.spectrum, t)
    const sizes = shown().f.map((f, s) => {
      const weights = times(matrix, y.map((target, i) => target - run.starts[s][i])), flowed = times(kernels.cross.ntk, weights)
      return Math.sqrt(flowed.reduce((sum, value, i) => sum + (f[i] - first[s][i] - value) ** 2, 0) / xs.length)
    }).sort((a, b) => a - b)
    return sizes[Math.floor(sizes.length / 2)]
  }

  function drawNumbers(t) {
    status.textContent = [statusText(t), notice].join(" ")
    if (run.told === t) return // as it stands
    const told = run.failed ? "Distance: none, as the networks diverged." : arrived() ? null : points.length ? "Distance: still training." : ""
    run.told = told === null ? t : undefined
    if (told !== null) { if (numbers.textContent !== told) numbers.textContent = told; return }
    const [now, last] = [distance(t), distance(Infinity)]
    numbers.textContent = `Distance between a network and its infinitely wide partner: ${numberText(now)} at this time, ${numberText(last)} from where training ends.`
    if (!run.counted && playing === null) { run.counted = true; runs.push({ width: state.width, distance: now, like: likeness(), frozen: state.frozen }); drawScatter() }
  }

  function statusText(t) {
    const { ensemble, failed, rate } = run
    if (!ensemble) return "No data yet: double-click the picture, or press “Add a point”. The band is where untrained networks are."
    if (failed) return `Diverged after ${ensemble.steps} steps: the learning rate is ${state.rate >= 1 ? "beyond" : "too close to"} the stability bound. Training has stopped; lower the rate.`
    const same = coinciding() ? " Two points coincide with different targets: no function fits both, and the mode of their difference is never learned." : ""
    if (!arrived()) return `Training: the blue networks are at time ${numberText(Math.min(t, ensemble.steps * rate))}, orange is at ${numberText(t)}.${same}`
    return `Trained to time ${numberText(t)}: ${goal()} steps of ${numberText(rate)}.${same}`
  }

  const coinciding = () => points.some(([x, y], i) => points.some(([u, v], j) => j < i && Math.abs(x - u) < 1e-9 && Math.abs(y - v) > 1e-3))

  // What two runs must have in common for their distances to be compared over the width.
  const likeness = () => toFragment({ ...state, points, width: START.width, seed: START.seed, end: START.end })

  function drawScatter() {
    const now = likeness(), place = ({ width, distance }) => ({ cx: scatter.toX(width), cy: scatter.toY(Math.log10(Math.max(1e-3, distance))) })
    const first = runs.find(({ like, frozen }) => like === now && !frozen), power = width => Math.log10(first.distance * Math.sqrt(first.width / width))
    scatter.inside.replaceChildren(
      element("svg:path", { class: "live-end", d: first ? scatter.path([1.4, 6000], [power(1.4), power(6000)]) : "" }),
      ...runs.map(run => element("svg:circle", { r: 4, class: `live-run${run.like === now ? "" : " live-other"}${run.frozen ? " live-hollow" : ""}`, ...place(run) })))
  }

  // --- the address
  let remembering = null
  function remember() {
    clearTimeout(remembering)
    remembering = setTimeout(() => history.replaceState(null, "", toFragment({ ...state, points })), 300)
    drawScatter()
  }

  function apply(wanted, unknown = []) {
    stop()
    const { points: given, play: playNow, ...rest } = wanted
    Object.assign(state, rest)
    for (const [key, control] of Object.entries({ ...controls, time: clock })) if (key in state && key !== "data") control.value = key === "width" ? Math.log2(state.width) : state[key]
    if (Array.isArray(given)) { showStage(state.stage); setPoints(given) } else setData(rest.data ?? START.points, state.stage)
    notice = unknown.length ? `The address has settings that are not known here: ${unknown.join(", ")}.` : notice
    draw()
    if (playNow) start()
  }

  const follow = fragment => { const found = fromFragment(fragment); if (found) apply({ ...START, ...found.state }, found.unknown); return found }
  addEventListener("hashchange", () => follow(location.hash))
  document.addEventListener("click", event => {
    const link = event.target.closest?.("a[href^='#play:']")
    if (!link) return
    event.preventDefault()
    follow(link.getAttribute("href"))
    root.scrollIntoView({ behavior: still() ? "instant" : "smooth", block: "start" })
  })

  root.append(
    plot.root, legend, element("div", { class: "live-buttons live-clock" }, play, clock.root), status, numbers,
    element("div", { class: "live-pair" },
      element("figure", {}, bars.root, element("figcaption", {}, "How much of each mode infinite width has learned.")),
      element("figure", {}, scatter.root, element("figcaption", {}, "A dot for each run that has arrived; faint, of other settings. Dashed: one over the root of the width."))),
    list({ data, width, rate, frozen }), buttons,
    element("details", { class: "live-more" }, element("summary", {}, "More settings"), list(more)))
  if (!follow(location.hash)) apply({ ...START })
}
