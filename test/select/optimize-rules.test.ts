/** KTransformers' optimize rules: what their files ask for, and what is refused. */
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { parseRules } from '../../src/select/optimize-rules.ts';
import { type OptimizeWishes, optimizeWishes } from '../../src/select/optimize-wishes.ts';

const kimiK2 = { layers: 61, denseLayers: 1, qRank: 1536, experts: 384, sharedWidth: 2048 };

const wishesOf = (text: string, shape = kimiK2): OptimizeWishes =>
  optimizeWishes(parseRules('rules.yaml', text), shape);
const fixture = (name: string) =>
  readFileSync(new URL(`../fixtures/optimize-rules/${name}.yaml`, import.meta.url), 'utf8');

/** Where each device's layers begin. */
function cuts({ layers }: OptimizeWishes): [number, number][] {
  return layers.flatMap(({ device }, layer) =>
    device === layers[layer - 1]?.device ? [] : [[layer, device] as [number, number]],
  );
}
const onDevice = ({ layers }: OptimizeWishes) =>
  layers.flatMap(({ expertsOnDevice }, layer) => (expertsOnDevice ? [layer] : []));

describe('the files of KTransformers', () => {
  it.each(['single', 'serve', 'amx', 'fp8-serve'])('%s: everything on the first GPU but the routed experts', (name) => {
    const wishes = wishesOf(fixture(name));
    expect(cuts(wishes)).toEqual([[0, 0]]);
    expect(onDevice(wishes)).toEqual([]);
    expect(wishes.notices.join('\n')).toContain('rows of the embedding are looked up on the GPU');
    expect(wishes.notices.join('\n')).toContain('prompts take the operator');
  });

  it.each<[string, readonly (readonly [number, number])[]]>([
    [
      'multi-gpu',
      [
        [0, 0],
        [30, 1],
      ],
    ],
    [
      'multi-gpu-marlin',
      [
        [0, 0],
        [30, 1],
      ],
    ],
    [
      'multi-gpu-4',
      [
        [0, 0],
        [15, 1],
        [30, 2],
        [45, 3],
      ],
    ],
    [
      'multi-gpu-8',
      [
        [0, 0],
        [8, 1],
        [16, 2],
        [24, 3],
        [32, 4],
        [40, 5],
        [48, 6],
        [56, 7],
      ],
    ],
  ])('%s: layers cut where it says', (name, expected) => {
    expect(cuts(wishesOf(fixture(name)))).toEqual(expected);
  });

  it('marlin experts lie on the GPU, in the blocks of the file', () => {
    const wishes = wishesOf(fixture('multi-gpu-marlin'));
    // Layer 0 is dense: its rule meets no experts.
    expect(onDevice(wishes)).toEqual([1, 2, 3, 4, 30]);
    expect(wishes.notices.join('\n')).toContain("Marlin's 4-bit copies are not made");
    expect(wishes.notices).toContainEqual(expect.stringMatching(/^the head is computed where the last layer is/));
  });

  it('say once, with the numbers of the rules, what is not followed', () => {
    const lines = wishesOf(fixture('serve')).notices;
    expect(lines.filter((line) => line.includes('Marlin'))).toEqual([expect.stringMatching(/^rule 2, 3: /)]);
    expect(wishesOf(fixture('amx')).notices).toContainEqual(expect.stringContaining('AMXInt8: weights keep the type'));
  });
});

const linear = 'ktransformers.operators.linear.KTransformersLinear';

describe('the first rule that matches', () => {
  const layersOn = (rules: string) => wishesOf(rules, { ...kimiK2, layers: 3 }).layers.map(({ device }) => device);

  it('wins, module by module, and gives nothing to the modules below', () => {
    expect(
      layersOn(`
- {match: {name: 'layers\\.1\\.'}, replace: {class: default, kwargs: {generate_device: 'cuda:1'}}}
- {match: {class: torch.nn.Linear}, replace: {class: ${linear}, kwargs: {generate_device: 'cuda:2'}}}
- {match: {name: '^model$'}, replace: {class: default, kwargs: {generate_device: 'cuda:3'}}}`),
    ).toEqual([2, 1, 2]);
  });

  it('needs both name and class where it has both, and searches names anywhere', () => {
    expect(
      layersOn(`
- {match: {name: '2.self_attn', class: torch.nn.Embedding}, replace: {class: default, kwargs: {generate_device: 'cuda:1'}}}
- {match: {name: 'attn.o_proj', class: torch.nn.Linear}, replace: {class: ${linear}, kwargs: {generate_device: 'cuda:2'}}}`),
    ).toEqual([2, 2, 2]);
  });

  it('with recursive False takes all below along', () => {
    const rule = (recursive: string) => `
- {match: {name: '^model\\.layers\\.2$'}, replace: {class: default, kwargs: {generate_device: 'cuda:1'}}, recursive: ${recursive}}`;
    expect(layersOn(rule('False'))).toEqual([0, 0, 1]);
    expect(layersOn(rule('True'))).toEqual([0, 0, 0]);
  });

  it('none leaves a module on the first GPU, routed experts too', () => {
    const wishes = wishesOf('[]', { ...kimiK2, layers: 3 });
    expect([cuts(wishes), onDevice(wishes), wishes.notices]).toEqual([[[0, 0]], [1, 2], []]);
  });

  it('that parts a layer is answered with a line', () => {
    const { notices, layers } = wishesOf(
      `- {match: {name: 'layers\\.[12]\\.mlp\\.shared'}, replace: {class: default, kwargs: {generate_device: 'cuda:1'}}}`,
      { ...kimiK2, layers: 3 },
    );
    expect(layers.map(({ device }) => device)).toEqual([0, 0, 0]);
    expect(notices).toEqual(['layers 1, 2: the shared expert of a layer goes where its attention is']);
  });

  it('may name the modules of a model with a plain query', () => {
    const rules = `- {match: {name: 'q_proj$'}, replace: {class: ${linear}}}`;
    expect(() => wishesOf(rules, { ...kimiK2, qRank: 0, sharedWidth: 0 })).not.toThrow();
  });
});

describe('a rule is refused with its number', () => {
  const good = `- {match: {class: torch.nn.Linear}, replace: {class: ${linear}}}\n`;
  const experts = 'ktransformers.operators.experts.KTransformersExperts';
  it.each<[string, string, string]>([
    ['for a class that is not known', '{match: {name: a}, replace: {class: os.system}}', 'class os.system in place'],
    [
      'for a class that no module has',
      '{match: {class: torch.nn.Conv2d}, replace: {class: default}}',
      'torch.nn.Conv2d',
    ],
    [
      'for a dead name',
      `{match: {name: a}, replace: {class: ${experts}, kwargs: {generate_op: MLPCUDAExperts}}}`,
      'MLPCUDAExperts',
    ],
    [
      'for an operator of another class',
      `{match: {name: a}, replace: {class: ${linear}, kwargs: {generate_op: KExpertsCPU}}}`,
      'KExpertsCPU',
    ],
    ['for a property that objects have', '{match: {name: a}, replace: {class: toString}}', 'class toString'],
    [
      'for a device of others',
      '{match: {name: a}, replace: {class: default, kwargs: {generate_device: "npu:0"}}}',
      'npu:0',
    ],
    [
      'for an unknown keyword',
      '{match: {name: a}, replace: {class: default, kwargs: {generate_devices: cpu}}}',
      "'generate_devices'",
    ],
    [
      'for a backend that is not known',
      `{match: {name: a}, replace: {class: ${experts}, kwargs: {backend: AMXInt2}}}`,
      'AMXInt2',
    ],
    ['for a name that is no expression', '{match: {name: "(a"}, replace: {class: default}}', 'no regular expression'],
    ['without a match', '{replace: {class: default}}', 'lacks match'],
    ['that matches by nothing', '{match: {}, replace: {class: default}}', 'neither name nor class'],
    ['without a replacement', '{match: {name: a}}', 'lacks replace'],
    ['that is no map', 'linear', 'no map'],
    [
      'with a recursive that is neither',
      '{match: {name: a}, replace: {class: default}, recursive: maybe}',
      'recursive',
    ],
  ])('%s', (_, rule, message) => {
    expect(() => parseRules('rules.yaml', `${good}- ${rule}\n`)).toThrow(
      expect.objectContaining({
        code: 'RULES_INVALID',
        exitCode: 2,
        message: expect.stringMatching(new RegExp(`rules\\.yaml.*rule 2 .*${message.replace(/[()]/g, '\\$&')}`)),
      }),
    );
  });

  it.each([
    ['no list', 'threads: 4'],
    ['no YAML', '- "a'],
  ])('or the file as a whole: %s', (_, text) => {
    expect(() => parseRules('rules.yaml', text)).toThrow(expect.objectContaining({ code: 'RULES_INVALID' }));
  });
});
