// Scenes of the playground: its stages, its data, and the state as it stands in an address.

const TWO_PI = 2 * Math.PI
const STAGES = {
  line: { x: [-2, 2], xLabel: "input x", xTicks: [-2, -1, 0, 1, 2].map(v => [v, String(v).replace("-", "−")]), input: x => [x] },
  circle: { x: [0, TWO_PI], xLabel: "angle on the circle", xTicks: [[0, "0"], [Math.PI / 2, "π/2"], [Math.PI, "π"], [3 * Math.PI / 2, "3π/2"], [TWO_PI, "2π"]],
    input: angle => [Math.cos(angle), Math.sin(angle)] }
}
const MOST_POINTS = 40, GRID = 201, HIGH = 2 // of the stage
const START = { stage: "line", points: "step", depth: 1, activation: "relu", bStd: 0.5, width: 256, members: 5, rate: 0.5, time: 2, end: false, frozen: false, seed: 0 }

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

// Two hidden layers cost the square of the width.
const mostWidth = depth => ({ 1: 4096, 2: 512 })[depth] ?? 256

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
  const words = { stage: Object.keys(STAGES), activation: ["relu", "erf"], end: ["true", "false"], frozen: ["true", "false"], play: ["true", "false"], data: Object.keys(DATA) }
  for (const [key, value] of given) {
    const number = Number(value)
    if (ranges[key] && value !== "" && number >= ranges[key][0] && number <= ranges[key][1]) state[key] = number
    else if (words[key]?.includes(value)) state[key] = value === "true" ? true : value === "false" ? false : value
    else if (key === "points") state.points = value.split(";").map(pair => pair.split(",").map(Number)).filter(pair => pair.length === 2 && pair.every(Number.isFinite)).slice(0, MOST_POINTS)
    else unknown.push(key)
  }
  return { state, unknown }
}
