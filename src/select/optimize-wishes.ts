/** What KTransformers' rules ask for, layer by layer: the first rule that matches a module decides where it goes. */
import { type ModuleShape, moduleTree, type TreeModule } from './module-tree.ts';
import type { Device, OptimizeRule } from './optimize-rules.ts';
import type { LayerWish } from './placement.ts';

export interface OptimizeWishes {
  readonly layers: readonly LayerWish[];
  /** What is not followed, a line each. */
  readonly notices: readonly string[];
}

/** Where a module goes. No rule: the first GPU. */
interface Entry {
  readonly device: Device;
  readonly rule: OptimizeRule | null;
}

/** Follows the rules through the modules of a model. */
export function optimizeWishes(rules: readonly OptimizeRule[], shape: ModuleShape): OptimizeWishes {
  const entries = new Map<string, Entry>();
  walk(moduleTree(shape), rules, entries);
  const notices = ruleNotices(entries);
  const layers = Array.from({ length: shape.layers }, (_, layer) => layerWish(entries, shape, layer, notices));
  const head = deviceAt(entries, 'lm_head');
  const last = layers.at(-1)?.device;
  if (head !== last) notices.add(`the head is computed where the last layer is, on cuda:${last}`);
  if (deviceAt(entries, 'model.embed_tokens') === 'cpu') {
    notices.add('rows of the embedding are looked up on the GPU of the first layer');
  }
  return { layers, notices: notices.lines() };
}

function walk(module: TreeModule, rules: readonly OptimizeRule[], entries: Map<string, Entry>): void {
  const rule = rules.find(({ matches }) => matches(module.name, module.kind)) ?? null;
  entries.set(module.name, { device: rule?.device ?? 0, rule });
  if (rule?.recursive === false) return;
  for (const child of module.children()) walk(child, rules, entries);
}

/** A module below one where descent stopped is where that one is. */
function entryAt(entries: ReadonlyMap<string, Entry>, name: string): Entry {
  const entry = entries.get(name);
  if (entry !== undefined) return entry;
  const parent = name.slice(0, name.lastIndexOf('.'));
  return parent === name ? { device: 0, rule: null } : entryAt(entries, parent);
}

const deviceAt = (entries: ReadonlyMap<string, Entry>, name: string) => entryAt(entries, name).device;

function layerWish(
  entries: ReadonlyMap<string, Entry>,
  shape: ModuleShape,
  layer: number,
  notices: Notices,
): LayerWish {
  const at = `model.layers.${layer}`;
  const wanted = deviceAt(entries, `${at}.self_attn.o_proj`);
  if (wanted === 'cpu') notices.addLayer('attention is computed on a GPU: the CPU takes routed experts only', layer);
  const device = wanted === 'cpu' ? 0 : wanted;
  const together = (part: string, name: string) => {
    if (deviceAt(entries, `${at}.${name}`) === device) return;
    notices.addLayer(`${part} of a layer goes where its attention is`, layer);
  };
  if (layer < shape.denseLayers) {
    together('the dense network', 'mlp.gate_proj');
    return { device, expertsOnDevice: false };
  }
  together('the router', 'mlp.gate');
  if (shape.sharedWidth > 0) together('the shared expert', 'mlp.shared_experts.gate_proj');
  const experts = deviceAt(entries, `${at}.mlp.experts`);
  if (experts !== 'cpu') together('what a GPU holds of the routed experts', 'mlp.experts');
  return { device, expertsOnDevice: experts !== 'cpu' };
}

/** Lines, each once, with the rules or layers they are about. */
class Notices {
  readonly #lines = new Map<string, { readonly rules: Set<number>; readonly layers: Set<number> }>();

  add(line: string): void {
    this.#about(line);
  }

  addRule(line: string, rule: number): void {
    this.#about(line).rules.add(rule);
  }

  addLayer(line: string, layer: number): void {
    this.#about(line).layers.add(layer);
  }

  lines(): string[] {
    return [...this.#lines].map(([line, { rules, layers }]) => {
      if (rules.size > 0) return `rule ${[...rules].sort((a, b) => a - b).join(', ')}: ${line}`;
      return layers.size > 0 ? `layers ${[...layers].join(', ')}: ${line}` : line;
    });
  }

  #about(line: string) {
    const about = this.#lines.get(line) ?? { rules: new Set<number>(), layers: new Set<number>() };
    this.#lines.set(line, about);
    return about;
  }
}

function ruleNotices(entries: ReadonlyMap<string, Entry>): Notices {
  const notices = new Notices();
  for (const rule of new Set([...entries.values()].map((entry) => entry.rule))) {
    for (const line of rule?.notices ?? []) notices.addRule(line, rule?.number ?? 0);
  }
  return notices;
}
