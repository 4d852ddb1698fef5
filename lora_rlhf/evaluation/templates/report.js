const controls = document.querySelector('.controls');
if (controls) {
  const samples = [...document.querySelectorAll('.sample')], count = controls.querySelector('output');
  const show = () => {
    const words = controls.querySelector('input').value.toLowerCase();
    const wanted = [...controls.querySelectorAll('select')].map(choice => [choice.name, choice.value]);
    let shown = 0;
    for (const sample of samples) {
      sample.hidden = !(sample.textContent.toLowerCase().includes(words)
        && wanted.every(([name, value]) => !value || sample.dataset[name] === value));
      shown += !sample.hidden;
    }
    count.textContent = shown + ' of ' + samples.length + ' shown';
  };
  controls.addEventListener('input', show);
  controls.hidden = false;
  show();
}
